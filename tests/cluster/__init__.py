"""A stand-in for a Kubernetes cluster on one machine: the chart's pods in namespaces of Linux, and a small kubelet."""
