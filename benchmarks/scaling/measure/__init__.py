"""What single parts cost, measured with the product's own code. CPU time is measured, not the clock: others may use the
machine meanwhile."""
