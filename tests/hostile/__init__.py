"""Callers who send what nobody should: the service must neither die, nor leak, nor harm those who behave."""
