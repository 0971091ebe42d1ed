"""Measures a service from the client's side: a workload, its run, and a report."""
