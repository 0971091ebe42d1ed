"""Stands in for the supervisor where something else restarts processes, such as Kubernetes."""
