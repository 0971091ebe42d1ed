"""Directories of safetensors files are read part by part, and refused clearly where something is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, PreTrainedModel

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.formats.safetensors import SafetensorsSource
from tests.unit.gpu_worker.model_harness import SIZES, random_model

NAME = "model.layers.1.mlp.up_proj.weight"
SHAPE = (SIZES["intermediate_size"], SIZES["hidden_size"])


@pytest.fixture
def model() -> PreTrainedModel:
    return random_model(LlamaConfig(**SIZES))


def shard(model: PreTrainedModel, directory: Path) -> list[Path]:
    """Save in several files with an index."""
    model.save_pretrained(directory, max_shard_size="50KB")
    files = sorted(directory.glob("*.safetensors"))
    assert len(files) > 2
    return files


def test_parts_are_cut_from_the_whole(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    source = SafetensorsSource(tmp_path)
    whole = model.get_parameter(NAME)
    assert torch.equal(source.read(NAME, SHAPE), whole)
    assert torch.equal(source.read(NAME, SHAPE, rows=range(3, 50)), whole[3:50])
    assert torch.equal(source.read(NAME, SHAPE, columns=range(5, 48)), whole[:, 5:48])
    assert torch.equal(source.read(NAME, SHAPE, rows=range(9, 11), columns=range(5, 17)), whole[9:11, 5:17])
    assert source.read(NAME, SHAPE, rows=range(0)).shape == (0, SHAPE[1])


def test_shards_are_one_checkpoint(model: PreTrainedModel, tmp_path: Path) -> None:
    shard(model, tmp_path)
    source = SafetensorsSource(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(source.read(name, tuple(parameter.shape)), parameter)
        assert source.stored_bytes[name] == 4 * parameter.numel()
    assert set(source.stored_bytes) == {name for name, _ in model.named_parameters()}


def test_one_shard_at_a_time_is_mapped(model: PreTrainedModel, tmp_path: Path) -> None:
    files = shard(model, tmp_path)
    source = SafetensorsSource(tmp_path)
    for name, parameter in model.named_parameters():
        source.read(name, tuple(parameter.shape))
        maps = Path("/proc/self/maps").read_text()
        assert sum(str(file) in maps for file in files) == 1


def test_shards_without_an_index_are_one_checkpoint(model: PreTrainedModel, tmp_path: Path) -> None:
    shard(model, tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert torch.equal(SafetensorsSource(tmp_path).read(NAME, SHAPE), model.get_parameter(NAME))


def test_missing_shard_is_named(model: PreTrainedModel, tmp_path: Path) -> None:
    lost = shard(model, tmp_path)[1]
    lost.unlink()
    with pytest.raises(ModelLoadError, match=f"{lost.name} is missing .* download the model again"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}'])
def test_damaged_index_is_named(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelLoadError, match=r"model.safetensors.index.json cannot be read"):
        SafetensorsSource(tmp_path)


def test_index_cannot_point_elsewhere(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match="which is not beside it"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_file_is_refused(keep: float, model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    size = keep if isinstance(keep, int) else int(len(data) * keep)
    path.write_bytes(data[:size])
    with pytest.raises(ModelLoadError, match=rf"model.safetensors \({size} bytes\) is truncated or not a safetensors"):
        SafetensorsSource(tmp_path)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"holds no \*.safetensors file"):
        SafetensorsSource(tmp_path)


def test_missing_and_misshapen_tensors_are_named(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    source = SafetensorsSource(tmp_path)
    with pytest.raises(ModelLoadError, match=r"tensor model.layers.9.x.weight is missing"):
        source.read("model.layers.9.x.weight", (1,))
    with pytest.raises(ModelLoadError, match=r"has shape \[80, 48\] but the model's configuration says \[48, 80\]"):
        source.read(NAME, (48, 80))


def test_quantized_tensor_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4, 4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match="tensor a is stored as I8"):
        SafetensorsSource(tmp_path).read("a", (4, 4))
