"""What ends the service for good? Failures told to a person in one line."""


class ServiceError(Exception):
    """The service cannot start or go on. The message says what happened, to what, and what to do."""
