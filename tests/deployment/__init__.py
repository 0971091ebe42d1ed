"""What is deployed: images and the chart, by the tools that a cluster's people use."""
