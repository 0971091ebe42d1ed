"""What the scheduler counts and times, and how it is told to others."""
