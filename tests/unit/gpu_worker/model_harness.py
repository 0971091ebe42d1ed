"""How do tests make small checkpoints and run a model over a paged cache?"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from gpu_worker.attention.backend import AttentionMetadata
from gpu_worker.attention.torch_backend import TorchAttention
from gpu_worker.kernels.reference import ReferenceKernels
from gpu_worker.models.decoder import DecoderModel
from gpu_worker.parallel import ParallelGroup
from gpu_worker.weights import load_model, read_config

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model in which every vector matters too: norms away from 1, biases away from 0."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def reference_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """transformers' logits at every position of each sequence, each run alone without a cache."""
    with torch.inference_mode():
        return [model(torch.tensor([list(ids)]), use_cache=False).logits[0] for ids in sequences]


def load(
    path: Path,
    parallel: ParallelGroup | None = None,
    dtype: torch.dtype = torch.float32,
    max_model_len: int | None = None,
    load_format: str = "auto",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DecoderModel:
    """Load on the CPU with the reference kernels and attention."""
    return load_model(
        path,
        read_config(path, max_model_len),
        kernels=ReferenceKernels(),
        attention=TorchAttention(),
        parallel=parallel or ParallelGroup(),
        device=CPU,
        dtype=dtype,
        load_format=load_format,
        on_progress=on_progress,
    )


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


class PagedRun:
    """Sequences over one pool of blocks, handed out in random order."""

    def __init__(
        self, model: DecoderModel, sequences: Sequence[Sequence[int]], block_size: int = 4, seed: int = 0
    ) -> None:
        self._model = model
        self._sequences = [list(ids) for ids in sequences]
        self._block_size = block_size
        self._computed = [0] * len(sequences)
        sizes = [-(-len(ids) // block_size) for ids in sequences]
        num_blocks = sum(sizes) + 3
        free = random.Random(seed).sample(range(num_blocks), num_blocks)
        # Entries past a sequence's end stay at a block that belongs to another one.
        self._tables = torch.full((len(sequences), max(sizes)), free[0], dtype=torch.int32)
        for row, size in enumerate(sizes):
            self._tables[row, :size] = torch.tensor([free.pop() for _ in range(size)], dtype=torch.int32)
        config = model.config
        shape = (2, num_blocks, block_size, model.num_kv_heads, config.head_dim)
        self._caches = [torch.full(shape, 7.0, dtype=model.dtype) for _ in range(config.num_layers)]
        self.logits = [torch.empty((0, config.vocab_size)) for _ in sequences]

    def step(self, tokens_of: dict[int, int]) -> None:
        """Compute the next tokens of some sequences in one batch, and keep their logits."""
        order = sorted(tokens_of, key=lambda index: tokens_of[index] > 1)
        spans = [(index, self._computed[index], self._computed[index] + tokens_of[index]) for index in order]
        ids = [token for index, start, stop in spans for token in self._sequences[index][start:stop]]
        positions = torch.cat([torch.arange(start, stop) for _, start, stop in spans])
        with torch.inference_mode():
            hidden = self._model.forward(torch.tensor(ids), positions, self._caches, self._metadata(spans))
            logits = self._model.vocab.gather(self._model.compute_logits(hidden))
        row = 0
        for index, start, stop in spans:
            self.logits[index] = torch.cat((self.logits[index], logits[row : row + stop - start]))
            self._computed[index] = stop
            row += stop - start

    def finish(self, chunk: int) -> None:
        """Step all sequences by at most `chunk` tokens each until every one is done."""
        while any(self.remaining()):
            self.step({index: min(chunk, left) for index, left in enumerate(self.remaining()) if left})

    def remaining(self) -> list[int]:
        return [len(ids) - done for ids, done in zip(self._sequences, self._computed, strict=True)]

    def _metadata(self, spans: list[tuple[int, int, int]]) -> AttentionMetadata:
        lengths = [stop - start for _, start, stop in spans]
        starts = torch.tensor([0, *lengths]).cumsum(0).int()
        slots = [
            int(self._tables[index, position // self._block_size]) * self._block_size + position % self._block_size
            for index, start, stop in spans
            for position in range(start, stop)
        ]
        return AttentionMetadata(
            query_start=starts,
            seq_lens=torch.tensor([stop for _, _, stop in spans], dtype=torch.int32),
            block_tables=self._tables[[index for index, _, _ in spans]],
            slot_mapping=torch.tensor(slots),
            num_decodes=sum(length == 1 for length in lengths),
            max_query_len=max(lengths),
            max_seq_len=max(stop for _, _, stop in spans),
        )


def random_sequences(lengths: Sequence[int], vocab: int, seed: int = 0) -> list[list[int]]:
    """Token ids of the given lengths."""
    draw = random.Random(seed)
    return [[draw.randrange(vocab) for _ in range(length)] for length in lengths]
