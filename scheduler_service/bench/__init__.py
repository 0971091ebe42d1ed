"""Measures one process of the stack with stand-ins for its neighbours; prints JSON. See `pagewire bench`."""
