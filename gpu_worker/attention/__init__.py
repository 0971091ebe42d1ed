"""Paged attention: one interface, several backends, chosen by `select_backend`."""
