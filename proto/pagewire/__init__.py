"""Pagewire's wire formats: `pagewire.v1` for clients, `pagewire.ipc` between our own processes."""
