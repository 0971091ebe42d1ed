"""NaN logits, from a real worker on: one sequence fails, and the others never see its blocks."""

from pathlib import Path

from transformers import PreTrainedModel

from pagewire.ipc.requests import EndReason
from tests.fakes.bare_gateway import make_submit
from tests.fakes.engine_processes import engine
from tests.unit.gpu_worker.tiny_checkpoint import complete_greedily, write_checkpoint

POISON = 7
PREFIX = list(range(10, 58))


def poison(model: PreTrainedModel) -> None:
    """The head is not tied to the embedding: only who reads the token is ill."""
    model.get_input_embeddings().weight[POISON] = float("nan")


def test_nan_fails_one_sequence_and_nobody_shares_its_blocks(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, poison)
    ill = [99, *PREFIX[:20], POISON, *PREFIX[20:]]
    with engine(tmp_path, tmp_path / "run", 1) as running:
        gateway = running.gateway
        gateway.send(make_submit(1, ill, max_tokens=8))
        gateway.send(make_submit(2, PREFIX, max_tokens=8))
        gateway.wait(lambda: {1, 2} <= gateway.ended.keys())
        gateway.send(make_submit(3, [*ill, 5], max_tokens=8))
        gateway.send(make_submit(4, [*PREFIX, 5], max_tokens=8))
        gateway.wait(lambda: {3, 4} <= gateway.ended.keys())
        gateway.status = None
        gateway.wait(lambda: gateway.status is not None and gateway.status.load.num_running == 0)
        status = gateway.status
    assert status is not None
    assert status.limits is not None
    assert status.load.num_free_blocks == status.limits.num_blocks
    for stream in (1, 3):
        assert gateway.ended[stream].reason is EndReason.FAILED
        assert "NaN" in gateway.ended[stream].detail
        assert gateway.tokens[stream] == []
    assert gateway.ended[3].num_cached_tokens == 0
    assert gateway.ended[4].num_cached_tokens == 48
    assert gateway.tokens[2] == complete_greedily(model, PREFIX, 8)
    assert gateway.tokens[4] == complete_greedily(model, [*PREFIX, 5], 8)
