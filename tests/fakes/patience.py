"""How long do tests wait for what must happen? Until nobody can believe any more that it will."""

PATIENCE_S = 240.0
"""A slow machine that others use as well may take seconds for what takes milliseconds, and a minute for a start."""
