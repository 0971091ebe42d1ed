"""When is a dead child started again, and when is it given up?"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Waits initial_backoff_s, twice that, ... up to max_backoff_s; gives up after max_restarts restarts in a row
    of which none worked: did a step, or was ready for min_uptime_s."""

    initial_backoff_s: float = 0.2
    max_backoff_s: float = 10.0
    max_restarts: int = 10
    min_uptime_s: float = 5.0


class RestartCounter:
    """The restarts of one child."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self.num_failures = 0

    def next_delay_s(self, worked: bool) -> float | None:
        """The child died: seconds until its next start, None to give it up.

        Args:
            worked: this start did work, which forgives earlier failures.
        """
        self.num_failures = 0 if worked else self.num_failures + 1
        if self.num_failures > self._policy.max_restarts:
            return None
        return min(self._policy.initial_backoff_s * 2.0 ** max(self.num_failures - 1, 0), self._policy.max_backoff_s)
