"""What the workers are told about a sequence that takes a slot."""

import numpy as np

from tests.unit.core.harness import Harness


def test_workers_are_told_what_may_not_end_a_sequence_yet() -> None:
    harness = Harness(eos=frozenset({7}))
    harness.add(1, [1, 2], min_tokens=3, stop_token_ids=(9,), ignore_eos=False)
    harness.add(2, [1, 2], stop_token_ids=(9,))
    batch = harness.scheduler.schedule()
    assert batch is not None
    told = [(np.frombuffer(added.end_token_ids, dtype="<i4").tolist(), added.min_tokens) for added in batch.added]
    assert told == [([7, 9], 3), ([], 0)]
