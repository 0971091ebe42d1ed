"""How much of what the scheduler has is in use?"""

from dataclasses import dataclass

from scheduler_service.core.orphans import Orphans
from scheduler_service.core.running_set import RunningSet
from scheduler_service.core.steps_in_flight import StepsInFlight
from scheduler_service.core.waiting_room import WaitingRoom


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of this moment, and three that only grow: preemptions, and prompt tokens that were looked up and found in
    the prefix cache. `backlog` is requests and tokens that wait for their first turn."""

    num_blocks: int
    num_steps_in_flight: int
    num_orphans: int
    num_suspects: int
    backlog: tuple[int, int]
    num_preemptions: int
    num_prompt_queries: int
    num_prompt_hits: int

    @classmethod
    def of(cls, running: RunningSet, waiting: WaitingRoom, in_flight: StepsInFlight, orphans: Orphans) -> "Usage":
        """What these hold now. May be called in any thread."""
        return cls(
            num_blocks=running.blocks.num_blocks,
            num_steps_in_flight=len(in_flight.steps),
            num_orphans=len(orphans),
            num_suspects=waiting.quarantine.num_suspects,
            backlog=waiting.backlog.size,
            num_preemptions=running.num_preemptions,
            num_prompt_queries=running.num_prompt_queries,
            num_prompt_hits=running.num_prompt_hits,
        )
