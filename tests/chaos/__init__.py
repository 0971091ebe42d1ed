"""Processes are killed at random while streams run: every stream must end as if nothing had happened."""
