"""Two GPUs give the tokens of one, with captured graphs and without."""

import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from pagewire.ipc.requests import Sampling
from tests.fakes.engine_processes import engine
from tests.unit.gpu_worker.model_harness import random_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs"),
]

VOCAB = 5003
PLAIN = [Sampling(0.0, 0, 1.0, 0.0, 0), Sampling(0.8, 0, 1.0, 0.0, 11)]
FILTERED = [Sampling(1.2, 0, 0.9, 0.0, 12), Sampling(0.9, 40, 0.95, 0.05, 13)]


@pytest.fixture(scope="module", params=[2, 1], ids=["split", "replicated"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of so many KV heads."""
    folder: Path = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=416,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=request.param,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    random_model(config).save_pretrained(folder)
    return folder


FLOAT32 = ("--dtype", "float32")
DETERMINISTIC = ("--dtype", "bfloat16", "--deterministic")


def tokens_of(
    checkpoint: Path, folder: Path, num_ranks: int, samplings: list[Sampling], *flags: str
) -> list[list[int]]:
    draw = random.Random(0)
    prompts = [[draw.randrange(VOCAB) for _ in range(length)] for length in (1, 16, 17, 200)]
    with engine(checkpoint, folder, num_ranks, "--device", "cuda", *flags) as running:
        return running.run(prompts, samplings, max_tokens=24)


@pytest.mark.parametrize("flags", [[], ["--enforce-eager"]])
def test_two_gpus_give_the_tokens_of_one(checkpoint: Path, tmp_path: Path, flags: list[str]) -> None:
    alone = tokens_of(checkpoint, tmp_path / "1", 1, PLAIN + FILTERED, *FLOAT32)
    assert tokens_of(checkpoint, tmp_path / "2", 2, PLAIN + FILTERED, *FLOAT32, *flags) == alone
    assert tokens_of(checkpoint, tmp_path / "plain", 2, PLAIN, *FLOAT32, *flags) == [
        tokens for index, tokens in enumerate(alone) if index % 4 < 2
    ]


def test_two_gpus_give_the_same_tokens_in_any_batch(checkpoint: Path, tmp_path: Path) -> None:
    together = tokens_of(checkpoint, tmp_path / "1", 2, PLAIN + FILTERED, *DETERMINISTIC)
    plain = tokens_of(checkpoint, tmp_path / "2", 2, PLAIN, *DETERMINISTIC)
    assert plain == [tokens for index, tokens in enumerate(together) if index % 4 < 2]
    last = tokens_of(checkpoint, tmp_path / "3", 2, FILTERED[1:], *DETERMINISTIC)
    assert last == [tokens for index, tokens in enumerate(together) if index % 4 == 3]
