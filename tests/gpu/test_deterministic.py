"""In deterministic mode a token gets the same bits in any batch: alone, beside others, in any chunk, computed again."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tests.unit.gpu_worker.triton_cases as cases
from gpu_worker.attention.backend import AttentionParams
from gpu_worker.kernels.triton_product import product, product_tiles
from pagewire.ipc.requests import Sampling
from tests.gpu.families import small_families
from tests.unit.gpu_worker.launched_steps import run_prompts
from tests.unit.gpu_worker.model_harness import random_model

pytestmark = [pytest.mark.gpu, cases.needs_gpu]

VOCAB = 151
FAMILIES = small_families(VOCAB, max_position_embeddings=1024, num_layers=3)
SAMPLINGS = [Sampling(0.0, 0, 1.0, 0.0, 0), Sampling(1.0, 0, 1.0, 0.0, 5), Sampling(0.9, 0, 0.9, 0.0, 6)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("size", "outputs", "out_dtype"),
    [
        (1024, 4096, None),
        (3072, 1024, None),
        (4096, 6144, torch.float32),
        (576, 1536, None),
        (139, 256, None),
        (100, 77, torch.float32),
    ],
)
def test_products_do_not_depend_on_other_rows(
    dtype: torch.dtype, size: int, outputs: int, out_dtype: torch.dtype | None
) -> None:
    x = torch.randn(700, size, device=cases.DEVICE).to(dtype)
    weight = torch.randn(outputs, size, device=cases.DEVICE).to(dtype)
    bias = torch.randn(outputs, device=cases.DEVICE).to(dtype)
    together = product(x, weight, bias, True, out_dtype)
    expected = x.double() @ weight.double().t() + bias.double()
    assert cases.relative_error(together, expected) < (2e-5 if torch.float32 in (dtype, out_dtype) else 5e-3)
    for first, last in ((0, 1), (699, 700), (3, 10), (100, 164), (5, 70), (50, 306), (0, 699)):
        assert torch.equal(product(x[first:last].clone(), weight, bias, True, out_dtype), together[first:last])
    for tile in product_tiles(x.itemsize, x.device):
        assert torch.equal(product(x, weight, bias, True, out_dtype, tile), together)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(16, 8, 128), (32, 8, 128), (9, 3, 64), (8, 1, 256), (14, 2, 80)]
)
@pytest.mark.parametrize(
    ("window", "soft_cap", "dtype"),
    [
        (None, None, torch.bfloat16),
        (100, None, torch.bfloat16),
        (None, 30.0, torch.bfloat16),
        (None, None, torch.float32),
    ],
)
def test_attention_does_not_depend_on_chunks(
    heads: int, kv_heads: int, dim: int, window: int | None, soft_cap: float | None, dtype: torch.dtype
) -> None:
    params = AttentionParams(scale=dim**-0.5, sliding_window=window, soft_cap=soft_cap)
    batch = cases.PagedBatch([(777, 777), (1, 300), (64, 500)], heads, kv_heads, dim, 16, dtype)
    backend = batch.backend(window, deterministic=True)

    def attend_to(first: int, last: int) -> torch.Tensor:
        """Tokens of the first sequence, computed by themselves."""
        metadata = replace(
            batch.metadata,
            query_start=torch.tensor([0, last - first], dtype=torch.int32, device=cases.DEVICE),
            seq_lens=torch.tensor([last], dtype=torch.int32, device=cases.DEVICE),
            slot_mapping=batch.metadata.slot_mapping[first:last],
            block_tables=batch.metadata.block_tables[:1],
            num_decodes=int(last - first == 1),
            max_query_len=last - first,
        )
        backend.prepare(metadata)
        return backend.forward(batch.query[first:last].clone(), batch.cache, metadata, params)

    backend.prepare(batch.metadata)
    together = backend.forward(batch.query, batch.cache, batch.metadata, params)
    assert cases.relative_error(together, batch.expected(params)) < 5e-3
    for first, last in [(0, 1), (0, 5), (63, 64), (64, 65), (300, 301), (776, 777), (1, 700), (333, 777), (128, 192)]:
        assert torch.equal(attend_to(first, last), together[first:last])


@pytest.mark.parametrize("family", list(FAMILIES))
def test_bfloat16_gives_the_same_tokens_in_any_batch(family: str, tmp_path: Path) -> None:
    """Chunks of any size, blocks that run out so that sequences are computed again, graphs or none, and one alone."""
    random_model(FAMILIES[family]).save_pretrained(tmp_path)
    generator = random.Random(family)
    lengths = [1, 2, 16, 17, 63, 64, 65, 200, 300, *(generator.randint(1, 120) for _ in range(15))]
    prompts = [[generator.randrange(VOCAB) for _ in range(length)] for length in lengths]
    samplings = [SAMPLINGS[index % len(SAMPLINGS)] for index in range(len(prompts))]

    def run(chosen: slice = slice(None), num_blocks: int = 2000, chunk: int = 512, **flags: bool) -> list[list[int]]:
        harness = run_prompts(
            tmp_path,
            prompts[chosen],
            200,
            samplings[chosen],
            num_blocks,
            block_size=16,
            chunk=chunk,
            device="cuda",
            dtype="bfloat16",
            deterministic=True,
            **flags,
        )
        return [harness.tokens[index] for index in range(len(prompts[chosen]))]

    together = run()
    assert run(chunk=40) == together
    assert run(num_blocks=100) == together
    assert run(num_blocks=100, enforce_eager=True, chunk=300) == together
    assert run(slice(8, 9)) == together[8:9]
    assert run(slice(1, 4)) == together[1:4]
