"""Loading: progress, limits, dummy weights, and the errors a user can cause."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from gpu_worker.formats.errors import ModelLoadError
from tests.unit.gpu_worker.model_harness import SIZES, PagedRun, load, random_model, random_sequences


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    random_model(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    return tmp_path


def test_progress_rises_to_the_total(checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(checkpoint, on_progress=lambda done, total: seen.append((done, total)))
    tensors = load_file(checkpoint / "model.safetensors").values()
    total = sum(tensor.numel() * 4 for tensor in tensors)
    assert {entry[1] for entry in seen} == {total}
    assert [entry[0] for entry in seen] == sorted(entry[0] for entry in seen)
    assert seen[-1] == (total, total)
    assert len(seen) > len(tensors) // 2


def test_progress_counts_tensors_that_nobody_needs(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    save_file({**load_file(path), "unused": torch.zeros(10)}, path)
    seen: list[tuple[int, int]] = []
    load(checkpoint, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-2][0] == seen[-1][0] - 40
    assert seen[-1][0] == seen[-1][1]


def test_max_model_len_limits_the_model(checkpoint: Path) -> None:
    assert load(checkpoint, max_model_len=40).config.max_model_len == 40
    assert load(checkpoint).config.max_model_len == SIZES["max_position_embeddings"]


@pytest.mark.parametrize("max_model_len", [0, -1, SIZES["max_position_embeddings"] + 1])
def test_max_model_len_outside_the_model_is_refused(max_model_len: int, checkpoint: Path) -> None:
    with pytest.raises(ModelLoadError, match=f"length of {max_model_len} is asked; this model has 1 to 256"):
        load(checkpoint, max_model_len=max_model_len)


def test_dummy_weights_need_no_checkpoint_and_repeat(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (ids,) = random_sequences((9,), SIZES["vocab_size"])
    logits = []
    for _ in range(2):
        run = PagedRun(load(checkpoint, load_format="dummy"), [ids])
        run.finish(9)
        logits.append(run.logits[0])
    assert torch.equal(logits[0], logits[1])
    assert torch.isfinite(logits[0]).all()
    assert logits[0].std() > 0


def test_unknown_load_format_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ModelLoadError, match="load format 'fast' is not known; known: auto, dummy"):
        load(checkpoint, load_format="fast")


def test_missing_tensor_is_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=r"tensor model.layers.2.mlp.down_proj.weight is missing; the checkpoint"):
        load(checkpoint)


def test_weights_of_another_model_are_refused(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    random_model(LlamaConfig(**{**SIZES, "vocab_size": 99})).save_pretrained(other)
    (checkpoint / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ModelLoadError, match="configuration and weights are not of the same model"):
        load(checkpoint)


def test_loaded_weights_do_not_depend_on_the_file(checkpoint: Path) -> None:
    """A file that shrinks under a running worker must not crash it."""
    (ids,) = random_sequences((9,), SIZES["vocab_size"])
    model = load(checkpoint)
    run = PagedRun(model, [ids])
    run.finish(9)
    (checkpoint / "model.safetensors").write_bytes(b"")
    again = PagedRun(model, [ids])
    again.finish(9)
    assert torch.equal(run.logits[0], again.logits[0])
