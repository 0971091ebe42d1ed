"""The processes that serve: gateway (public protocols), core (the scheduler) and supervisor (starts and restarts them)."""
