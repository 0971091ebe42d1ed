"""Which steps are at the workers, and whom would their death be held against?"""

from collections import deque

from pagewire.ipc.steps import StepOutput
from scheduler_service.core.slot_table import SlotTable
from scheduler_service.core.step_plan import StepInFlight


class StepsInFlight:
    """Steps without a result.

    Attributes:
        steps: in the order in which they were sent, which is that of their results.
    """

    def __init__(self) -> None:
        self.steps: deque[StepInFlight] = deque()
        self._unsent: set[int] = set()

    def oldest(self, output: StepOutput, num_tokens: int) -> StepInFlight:
        """The step that this is the result of; it stays in flight.

        Raises:
            ValueError: it is not that of the oldest step in flight, or has not as many tokens as that draws.
        """
        if not self.steps or self.steps[0].step_id != output.step_id:
            raise ValueError(f"result of step {output.step_id}, which is not the oldest step in flight")
        step = self.steps[0]
        if num_tokens != len(step.sampled) or len(output.nan_flags) != len(step.sampled):
            raise ValueError(f"result of step {output.step_id} has {num_tokens} tokens for {len(step.sampled)}")
        return step

    def note_unsent(self, step_id: int) -> None:
        """This step did not reach the workers, which were gone before: their death is not of its making."""
        self._unsent.add(step_id)

    def clear(self) -> None:
        """The workers are gone: no result will come."""
        self.steps.clear()
        self._unsent.clear()

    def reaches(self, table: SlotTable) -> dict[str, int]:
        """The requests in flight, aborted ones too, and how many tokens of each its last step would have computed."""
        reaches: dict[str, int] = {}
        for step in self.steps:
            if step.step_id in self._unsent:
                continue
            for sequence, num_computed in step.sequences(table):
                reaches[sequence.request_id] = num_computed
        return reaches
