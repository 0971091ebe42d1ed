"""How long do tests wait for what must happen? Until nobody can believe any more that it will."""

from pagewire_client import RetryPolicy

PATIENCE_S = 240.0
"""A slow machine that others use as well may take seconds for what takes milliseconds, and a minute for a start."""

PATIENT = RetryPolicy(max_attempts=200, max_resume_attempts=200)
"""For clients of a service whose processes are killed: that they start again in time is a matter of the machine."""
