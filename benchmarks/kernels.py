"""How far is every GPU kernel from its floor: the time its bytes or its arithmetic take at best?

Prints one table: kernel, shape, microseconds, floor, their ratio, and what is moved or computed in that time. Two
ceilings are measured first, a copy and a matrix product. Everything is timed as it is served, in a captured graph, over
enough layers that caches do not help; `step` is a whole decode step of the Qwen3-0.6B shape on random weights.

    python -m benchmarks.kernels [--only attention,fused,linear,product,sampling,step]
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F

from gpu_worker.attention.backend import AttentionMetadata, AttentionParams
from gpu_worker.attention.triton_backend import TritonAttention
from gpu_worker.kernels.triton_kernels import TritonKernels
from gpu_worker.kernels.triton_linear import is_fastest, linear
from gpu_worker.kernels.triton_product import product, product_tiles
from gpu_worker.kernels.triton_sampling import DeviceSampling

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
BLOCK_SIZE = 16
HEAD_DIM = 128
VOCAB = 151_936
REPEATS = 15
# Memory that inputs of repeated runs take together: several times the L2 cache.
ROTATED_BYTES = 500_000_000
# Temperature, top-k, top-p, min-p.
FILTERS = {
    "greedy": (0.0, 0, 1.0, 0.0),
    "temperature": (0.6, 0, 1.0, 0.0),
    "top-k 20, top-p 0.95": (0.6, 20, 0.95, 0.0),
    "top-p 0.9": (0.6, 0, 0.9, 0.0),
    "min-p 0.1": (0.6, 0, 1.0, 0.1),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best: bytes and floating-point operations per microsecond."""

    bytes_per_us: float
    flops_per_us: float


@dataclass(frozen=True)
class Measurement:
    """One row of the table. Floor in microseconds, work in GB or TFLOP."""

    kernel: str
    shape: str
    us: float
    floor_us: float
    rate: str

    def line(self) -> str:
        """The row as text."""
        ratio = self.us / self.floor_us if self.floor_us > 0 else float("inf")
        return f"{self.kernel:20s} {self.shape:34s} {self.us:9.2f} {self.floor_us:9.2f} {ratio:7.2f} {self.rate}"


def time_us(run: Callable[[], object]) -> float:
    """Median time of a captured graph of `run`, microseconds."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times: list[float] = []
    for _ in range(3 + REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return sorted(times[3:])[REPEATS // 2]


def time_each_us(run: Callable[[T], object], inputs: Sequence[T]) -> float:
    """Time of one run when all inputs are taken in turn, microseconds."""

    def run_all() -> None:
        for each in inputs:
            run(each)

    return time_us(run_all) / len(inputs)


def measure_ceilings() -> Ceilings:
    """A large copy, counting bytes read and written, and a large matrix product."""
    source, target = rand(2**29), rand(2**29)
    copy_us = time_us(lambda: torch.neg(source, out=target))
    a, b = rand(8192, 8192), rand(8192, 8192)
    return Ceilings(2 * source.nbytes / copy_us, 2 * 8192**3 / time_us(lambda: a @ b))


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, dtype=DTYPE)


def by_bytes(kernel: str, shape: str, us: float, num_bytes: float, ceilings: Ceilings) -> Measurement:
    return Measurement(kernel, shape, us, num_bytes / ceilings.bytes_per_us, f"{num_bytes / us / 1e3:.0f} GB/s")


def make_metadata(lengths: list[tuple[int, int]]) -> tuple[AttentionMetadata, int]:
    """A batch of sequences (tokens to compute, tokens in all) over shuffled blocks, and how many blocks it takes."""
    widths = [-(-seq_len // BLOCK_SIZE) for _, seq_len in lengths]
    shuffled = torch.randperm(sum(widths))
    tables = torch.zeros(len(lengths), max(widths), dtype=torch.int32)
    slots, first = [], 0
    for row, ((count, seq_len), width) in enumerate(zip(lengths, widths, strict=True)):
        tables[row, :width] = shuffled[first : first + width]
        positions = torch.arange(seq_len - count, seq_len)
        slots.append(tables[row, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE)
        first += width
    counts = [count for count, _ in lengths]
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, *counts]).cumsum(0).int().to(DEVICE),
        seq_lens=torch.tensor([seq_len for _, seq_len in lengths], dtype=torch.int32, device=DEVICE),
        block_tables=tables.to(DEVICE),
        slot_mapping=torch.cat(slots).to(DEVICE),
        num_decodes=counts.count(1),
        max_query_len=max(counts),
        max_seq_len=max(seq_len for _, seq_len in lengths),
    )
    return metadata, sum(widths)


def make_backend(heads: int, kv_heads: int) -> TritonAttention:
    return TritonAttention(heads, kv_heads, HEAD_DIM, frozenset([None]), DTYPE, DEVICE)


def measure_attention(ceilings: Ceilings) -> list[Measurement]:
    """Decode against the bytes of the keys and values, prefill against its arithmetic, and the plans made per step."""
    rows = []
    for case in (
        (256, 16, 400, 1300),
        (64, 16, 512, 1024),
        (64, 32, 400, 1300),
        (16, 16, 400, 1300),
        (1, 16, 900, 1000),
        (16, 32, 8_000, 16_000),
        (1, 32, 32_000, 32_000),
    ):
        rows += measure_decode(*case, ceilings)
    for num_seqs, count, seq_len, heads in (
        (8, 1024, 1024, 16),
        (1, 8192, 8192, 16),
        (8, 1024, 1024, 32),
        (1, 8192, 8192, 32),
        (1, 512, 8192, 32),
    ):
        rows.append(measure_prefill(num_seqs, count, seq_len, heads, ceilings))
    return rows


def measure_decode(batch: int, heads: int, low: int, high: int, ceilings: Ceilings) -> list[Measurement]:
    params = AttentionParams(HEAD_DIM**-0.5)
    lengths = [(1, random.Random(index).randint(low, high)) for index in range(batch)]
    metadata, num_blocks = make_metadata(lengths)
    num_bytes = sum(seq_len for _, seq_len in lengths) * 8 * HEAD_DIM * 4
    caches = [rand(2, num_blocks, BLOCK_SIZE, 8, HEAD_DIM) for _ in range(1 + ROTATED_BYTES // num_bytes)]
    backend, query = make_backend(heads, 8), rand(batch, heads, HEAD_DIM)
    backend.prepare(metadata)
    us = time_each_us(lambda cache: backend.forward(query, cache, metadata, params), caches)
    plan_us = time_each_us(backend.prepare, [metadata] * 10)
    shape = f"{batch} x {low}-{high}, {heads}/8 heads"
    plan = Measurement("decode plan", shape, plan_us, 0.0, "once per step")
    return [by_bytes("attention decode", shape, us, num_bytes, ceilings), plan]


def measure_prefill(num_seqs: int, count: int, seq_len: int, heads: int, ceilings: Ceilings) -> Measurement:
    params = AttentionParams(HEAD_DIM**-0.5)
    metadata, num_blocks = make_metadata([(count, seq_len)] * num_seqs)
    cache, query = rand(2, num_blocks, BLOCK_SIZE, 8, HEAD_DIM), rand(num_seqs * count, heads, HEAD_DIM)
    flops = 4 * heads * HEAD_DIM * num_seqs * (count * (seq_len - count) + count * (count + 1) / 2)
    backend = make_backend(heads, 8)
    backend.prepare(metadata)
    us = time_us(lambda: backend.forward(query, cache, metadata, params))
    shape = f"{num_seqs} x {count} of {seq_len}, {heads}/8 heads"
    return Measurement("attention prefill", shape, us, flops / ceilings.flops_per_us, f"{flops / us / 1e6:.0f} TFLOP/s")


def measure_fused(ceilings: Ceilings) -> list[Measurement]:
    """The operations between the matrix products, Qwen3-0.6B shape."""
    return [row for tokens in (1, 64, 256, 2048, 8192) for row in measure_fused_of(tokens, ceilings)]


def measure_fused_of(tokens: int, ceilings: Ceilings) -> list[Measurement]:
    kernels = TritonKernels(DEVICE)
    hidden, intermediate, heads, kv_heads = 1024, 3072, 16, 8
    copies = range(max(2, min(40, ROTATED_BYTES // (tokens * intermediate * 4))))
    norm, head_norm, cos_sin = rand(hidden), rand(HEAD_DIM), torch.randn(4096, HEAD_DIM, device=DEVICE)
    xs = [rand(tokens, hidden) for _ in copies]
    residuals = [rand(tokens, hidden).float() for _ in copies]
    gate_ups = [rand(tokens, 2 * intermediate) for _ in copies]
    qkvs = [rand(tokens, (heads + 2 * kv_heads) * HEAD_DIM) for _ in copies]
    positions = torch.randint(0, 4096, (tokens,), device=DEVICE)
    cache = rand(2, tokens // BLOCK_SIZE + 1, BLOCK_SIZE, kv_heads, HEAD_DIM)
    slots = torch.randperm(tokens, device=DEVICE)

    def rope(i: int) -> torch.Tensor:
        return kernels.rope_and_cache(qkvs[i], positions, cos_sin, cache, slots, head_norm, head_norm, 1e-6)

    runs: tuple[tuple[str, Callable[[int], object], int], ...] = (
        ("rms_norm", lambda i: kernels.rms_norm(residuals[i], norm, 1e-6), 6 * hidden),
        ("add_rms_norm", lambda i: kernels.add_rms_norm(xs[i], residuals[i], norm, 1e-6), 12 * hidden),
        ("silu_mul", lambda i: kernels.silu_mul(gate_ups[i]), 6 * intermediate),
        ("rope_and_cache", rope, 4 * (heads + 2 * kv_heads) * HEAD_DIM),
    )
    return [
        by_bytes(name, f"{tokens} tokens", time_each_us(run, copies), tokens * bytes_per_token, ceilings)
        for name, run, bytes_per_token in runs
    ]


def measure_linear(ceilings: Ceilings) -> list[Measurement]:
    """Linear layers of few rows against the bytes of their weights, and what torch takes for the same."""
    rows = []
    for size, outputs in ((1024, 4096), (2048, 1024), (1024, 6144), (3072, 1024), (4096, 6144), (12288, 4096)):
        num_bytes = 2 * size * outputs
        weights = [rand(outputs, size) for _ in range(max(2, ROTATED_BYTES // num_bytes))]
        for tokens in (1, 2, 4):
            x = rand(tokens, size)
            shape = f"{tokens} x {size} -> {outputs}"
            us = time_each_us(partial(F.linear, x), weights)
            rows.append(by_bytes("linear (torch)", shape, us, num_bytes, ceilings))
            if is_fastest(tokens, weights[0]):
                us = time_each_us(partial(linear, x, bias=None, overlap=True), weights)
                rows.append(by_bytes("linear", shape, us, num_bytes, ceilings))
    return rows


def measure_products(ceilings: Ceilings) -> list[Measurement]:
    """The deterministic mode's products, by each tile, and what torch takes for the same."""
    rows = []
    for size, outputs in ((1024, 4096), (2048, 1024), (1024, 6144), (3072, 1024), (4096, 24576), (12288, 4096)):
        num_bytes = 2 * size * outputs
        weights = [rand(outputs, size) for _ in range(max(2, ROTATED_BYTES // num_bytes))]
        for tokens in (1, 64, 128, 256, 2048):
            x = rand(tokens, size)
            ways: dict[str, Callable[[torch.Tensor], object]] = {"product (torch)": partial(F.linear, x)}
            for tile in product_tiles(x.itemsize, DEVICE):
                run = partial(product, x, bias=None, overlap=True, tile=tile)
                ways[f"product {tile.rows}x{tile.outputs}"] = run
            num_flops = 2 * tokens * size * outputs
            floor_us = max(num_bytes / ceilings.bytes_per_us, num_flops / ceilings.flops_per_us)
            for name, run in ways.items():
                us = time_each_us(run, weights)
                shape = f"{tokens} x {size} -> {outputs}"
                rows.append(Measurement(name, shape, us, floor_us, f"{num_flops / us / 1e6:.0f} TFLOP/s"))
    return rows


def make_sampling(rows: int, temperature: float, top_k: int, top_p: float, min_p: float) -> DeviceSampling:
    def full(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows,), value, device=DEVICE, dtype=dtype)

    return DeviceSampling(
        full(temperature, torch.float32),
        full(top_k, torch.int32),
        full(top_p, torch.float32),
        full(min_p, torch.float32),
        torch.randint(0, 2**60, (rows,), device=DEVICE),
        torch.arange(rows, device=DEVICE),
    )


def measure_sampling(ceilings: Ceilings) -> list[Measurement]:
    """Sampling against reading the logits once. The spread of a real model's logits is nearer to 4 than to 1."""
    kernels, rows = TritonKernels(DEVICE), []
    for batch in (1, 64, 256):
        for dtype in (torch.bfloat16, torch.float32):
            for spread in (1, 4):
                logits = (torch.randn(batch, VOCAB, device=DEVICE) * spread).to(dtype)
                for name, filters in FILTERS.items():
                    us = time_us(partial(kernels.sample, logits, make_sampling(batch, *filters)))
                    shape = f"{batch} rows, spread {spread}, {str(dtype)[6:]}"
                    rows.append(by_bytes(name, shape, us, logits.numel() * logits.itemsize, ceilings))
    return rows


class Step:
    """A decode step of the Qwen3-0.6B shape: embedding, 28 layers, head, sampling."""

    hidden, layers, heads, kv_heads, intermediate = 1024, 28, 16, 8, 3072

    def __init__(self, seq_lens: list[int]) -> None:
        """Random weights and cache for sequences of these lengths."""
        size = HEAD_DIM
        self.metadata, num_blocks = make_metadata([(1, seq_len) for seq_len in seq_lens])
        batch = len(seq_lens)
        self.kernels, self.backend = TritonKernels(DEVICE), make_backend(self.heads, self.kv_heads)
        self.ids = torch.randint(0, VOCAB, (batch,), device=DEVICE)
        self.positions = self.metadata.seq_lens.long() - 1
        self.cos_sin = torch.randn(max(seq_lens), size, device=DEVICE)
        self.sampling = make_sampling(batch, 0.6, 0, 1.0, 0.0)
        self.embedding, self.norm, self.head_norm = rand(VOCAB, self.hidden), rand(self.hidden), rand(size)
        shapes = (
            ((self.heads + 2 * self.kv_heads) * size, self.hidden),
            (self.hidden, self.heads * size),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        )
        self.weights = [[rand(*shape) / shape[1] ** 0.5 for shape in shapes] for _ in range(self.layers)]
        self.caches = [rand(2, num_blocks, BLOCK_SIZE, self.kv_heads, size) for _ in range(self.layers)]
        cache_bytes = sum(seq_lens) * self.kv_heads * size * 4 * self.layers
        layer_bytes = sum(2 * rows * columns for rows, columns in shapes)
        self.num_bytes = cache_bytes + self.layers * layer_bytes + 2 * VOCAB * self.hidden

    def run_layers(self) -> torch.Tensor:
        """[batch, hidden]"""
        kernels, params = self.kernels, AttentionParams(HEAD_DIM**-0.5)
        self.backend.prepare(self.metadata)
        residual = F.embedding(self.ids, self.embedding).float()
        x = kernels.rms_norm(residual, self.norm, 1e-6)
        for (qkv, out, gate_up, down), cache in zip(self.weights, self.caches, strict=True):
            query = kernels.rope_and_cache(
                multiply(x, qkv),
                self.positions,
                self.cos_sin,
                cache,
                self.metadata.slot_mapping,
                self.head_norm,
                self.head_norm,
                1e-6,
            )
            x = multiply(self.backend.forward(query, cache, self.metadata, params), out)
            x = kernels.add_rms_norm(x, residual, self.norm, 1e-6)
            x = multiply(kernels.silu_mul(multiply(x, gate_up)), down)
            x = kernels.add_rms_norm(x, residual, self.norm, 1e-6)
        return x

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and which rows are finite."""
        return self.kernels.sample(multiply(self.run_layers(), self.embedding), self.sampling)


def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return linear(x, weight, None, True) if is_fastest(x.shape[0], weight) else F.linear(x, weight)


def measure_step(ceilings: Ceilings) -> list[Measurement]:
    """Against every live key and value and all weights once."""
    rows = []
    for batch in (1, 2, 4, 16, 64, 128, 256):
        step = Step([random.Random(index).randint(500, 1300) for index in range(batch)])
        shape = f"batch {batch}, contexts 500-1300"
        layers_us = time_us(step.run_layers)
        rows.append(by_bytes("step, layers only", shape, layers_us, step.num_bytes - 2 * VOCAB * step.hidden, ceilings))
        rows.append(by_bytes("step", shape, time_us(step.run), step.num_bytes, ceilings))
        del step
        torch.cuda.empty_cache()
    return rows


PARTS = {
    "attention": measure_attention,
    "fused": measure_fused,
    "linear": measure_linear,
    "product": measure_products,
    "sampling": measure_sampling,
    "step": measure_step,
}


def main() -> None:
    """Parse flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, comma-separated")
    parts = parser.parse_args().only.split(",")
    started = time.monotonic()
    with torch.inference_mode():
        ceilings = measure_ceilings()
        print(
            f"{torch.cuda.get_device_name()}: copy {ceilings.bytes_per_us / 1e3:.0f} GB/s read + write, "
            f"matrix product {ceilings.flops_per_us / 1e6:.0f} TFLOP/s"
        )
        print(f"{'kernel':20s} {'shape':34s} {'us':>9s} {'floor':>9s} {'ratio':>7s} rate")
        for part in parts:
            for row in PARTS[part](ceilings):
                print(row.line(), flush=True)
            torch.cuda.empty_cache()
    print(f"took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
