"""The processes that serve: gateway (public protocols), core (the scheduler), supervisor (starts and restarts them)."""
