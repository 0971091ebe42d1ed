"""Fused operations between the matrix products: one interface, a torch reference, faster versions per device."""
