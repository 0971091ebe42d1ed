"""For which sizes are CUDA graphs captured, and how?"""

from bisect import bisect_left
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

# Longer steps take the device longer than the host.
_MAX_MIXED_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """Padded sizes, rising.

    decodes: sequences of a step in which each computes one token.
    mixed: tokens of any other step.
    draws: rows that tokens are drawn for.
    """

    decodes: tuple[int, ...]
    mixed: tuple[int, ...]
    draws: tuple[int, ...]

    @classmethod
    def up_to(cls, max_seqs: int, max_tokens: int) -> "GraphSizes":
        """Close enough that little is wasted on padding, and few enough that capturing them is quick."""
        decodes = _sizes(max_seqs, ((1, 2), (2, 4), (4, 16), (8, 256), (16, 512), (32, 1 << 20)))
        mixed = _sizes(
            min(max_tokens, _MAX_MIXED_TOKENS), ((16, 64), (64, 512), (128, 1024), (256, 2048), (512, 1 << 20))
        )
        return cls(decodes, mixed, decodes)

    def pad_decodes(self, num_seqs: int) -> int | None:
        """The padded size for so many sequences; None if there is none."""
        return _pad(self.decodes, num_seqs)

    def pad_mixed(self, num_tokens: int) -> int | None:
        """The padded size for so many tokens; None if there is none."""
        return _pad(self.mixed, num_tokens)

    def pad_draws(self, num_sampled: int) -> int | None:
        """The padded size for so many rows; 0 for none, None if there is no size."""
        return 0 if num_sampled == 0 else _pad(self.draws, num_sampled)


class GraphPool:
    """Captured programs that share one pool of memory: of what one leaves there, nothing may be needed by another."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def capture(self, key: Hashable, program: Callable[[], object]) -> None:
        """Capture a program, after a run that has libraries set themselves up for its size."""
        program()
        torch.cuda.synchronize(self._stream.device)
        graph = torch.cuda.CUDAGraph()
        # Not torch.cuda.graph: it collects garbage and empties caches at every capture.
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            program()
            graph.capture_end()
        self._graphs[key] = graph

    def replay(self, key: Hashable) -> bool:
        """Enqueue what was captured as `key`; False if nothing was."""
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
        return graph is not None

    def clear(self) -> None:
        """Drop all graphs."""
        self._graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()


def _sizes(limit: int, steps: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """From the first step on in strides of (stride, up to), the last at least `limit`."""
    sizes = [steps[0][0]]
    for stride, end in steps:
        while sizes[-1] < min(end, limit):
            sizes.append(sizes[-1] + stride)
    return tuple(sizes)


def _pad(sizes: tuple[int, ...], size: int) -> int | None:
    index = bisect_left(sizes, size)
    return sizes[index] if index < len(sizes) else None
