"""Which padded sizes graphs are captured for."""

import pytest

from gpu_worker.execution.graphs import GraphSizes
from gpu_worker.peer_memory import part_shape


@pytest.mark.parametrize("max_seqs", [1, 3, 8, 100, 256, 300, 1024])
@pytest.mark.parametrize("max_tokens", [16, 100, 2048, 10_000])
def test_every_batch_has_a_size_that_is_hardly_larger(max_seqs: int, max_tokens: int) -> None:
    sizes = GraphSizes.up_to(max_seqs, max_tokens)
    assert len(sizes.decodes) + len(sizes.mixed) + len(sizes.draws) < 180
    for count in range(1, max_seqs + 1):
        for padded in (sizes.pad_decodes(count), sizes.pad_draws(count)):
            assert padded is not None
            assert count <= padded <= max(count + 4, count * 1.15 + 8)
    for count in range(2, min(max_tokens, 8192) + 1):
        padded = sizes.pad_mixed(count)
        assert padded is not None
        assert count <= padded <= max(count + 64, count * 1.35)


@pytest.mark.parametrize("max_tokens", [16, 40, 300, 500, 1000, 2048, 3000, 8000, 8192])
def test_padded_steps_have_room_in_the_memory_that_two_ranks_share(max_tokens: int) -> None:
    sizes = GraphSizes.up_to(max_tokens, max_tokens)
    assert part_shape(2, max_tokens, hidden=8)[2] >= max(*sizes.decodes, *sizes.mixed)


def test_what_is_too_large_has_no_size() -> None:
    sizes = GraphSizes.up_to(8, 10_000)
    assert sizes.pad_decodes(9) is None
    assert sizes.pad_draws(9) is None
    assert sizes.pad_draws(0) == 0
    assert sizes.pad_mixed(8193) is None
