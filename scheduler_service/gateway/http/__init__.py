"""HTTP for whoever does not speak gRPC: probes, and the protocols that are plain HTTP."""
