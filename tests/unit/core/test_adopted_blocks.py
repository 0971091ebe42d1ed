"""A new scheduler shares what workers hold of the one that died."""

import numpy as np
import pytest

from pagewire.ipc.steps import LeftSequence
from tests.fakes.step_executor import complete
from tests.unit.core.harness import Harness

PROMPT = list(range(10, 21))


def left(token_ids: list[int], block_ids: list[int], cache_salt: str = "") -> LeftSequence:
    return LeftSequence(
        np.array(token_ids, dtype=np.int32).tobytes(), np.array(block_ids, dtype=np.int32).tobytes(), cache_salt
    )


def adopting(*sequences: LeftSequence, **config: object) -> Harness:
    """A harness whose worker holds these tokens, and whose scheduler was told so."""
    harness = Harness(**config)  # type: ignore[arg-type]
    harness.worker.hold(sequences)
    harness.scheduler.adopt(sequences)
    harness.scheduler.check_integrity()
    return harness


def run(harness: Harness, prompt: list[int], **changes: object) -> int:
    """Run a prompt to its right end; how many of its tokens were cached."""
    harness.add(1, prompt, max_tokens=6, **changes)
    harness.run()
    assert harness.tokens[1] == complete(prompt, 6)
    assert harness.scheduler.load.num_free_blocks == harness.worker.num_blocks
    return harness.ended[1].num_cached_tokens


def test_a_sequence_that_comes_again_is_not_computed_again() -> None:
    assert run(adopting(left(PROMPT[:8], [7, 3])), PROMPT) == 8


def test_sequences_with_a_common_beginning_share_it() -> None:
    other = [*PROMPT[:4], 1, 2, 3, 4]
    harness = adopting(left(PROMPT[:8], [7, 3]), left(other, [7, 9]))
    assert run(harness, [*other, 5]) == 8
    harness.add(2, PROMPT)
    harness.run()
    assert harness.ended[2].num_cached_tokens == 8


def test_equal_content_in_two_blocks_is_kept_once() -> None:
    assert run(adopting(left(PROMPT[:8], [7, 3]), left(PROMPT[:8], [1, 2])), PROMPT) == 8


def test_another_salt_shares_nothing() -> None:
    harness = adopting(left(PROMPT[:8], [7, 3], "tenant"))
    assert run(harness, PROMPT) == 0
    harness.add(2, PROMPT, cache_salt="tenant")
    harness.run()
    assert harness.ended[2].num_cached_tokens == 8


@pytest.mark.parametrize("config", [{"prefix_caching": False}, {"num_blocks": 5}])
def test_what_cannot_be_shared_is_left_out(config: dict[str, object]) -> None:
    harness = Harness(**config)  # type: ignore[arg-type]
    harness.scheduler.adopt([left(PROMPT[:8], [7, 63])])
    assert run(harness, PROMPT) == 0


def test_adopted_blocks_are_evicted_when_others_need_them() -> None:
    harness = adopting(left(PROMPT[:8], [3, 0]), num_blocks=5)
    assert run(harness, list(range(30, 43))) == 0
