"""Measures a service from the client's side: workloads, how they are run, and reports."""
