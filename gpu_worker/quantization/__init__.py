"""How a weight matrix is kept and multiplied: one interface, one file per method."""
