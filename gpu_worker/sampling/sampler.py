"""How is the next token of each sequence chosen from its logits?

A draw is a pure function of logits, sampling parameters, seed and output position: no generator has a state. So a
sequence's stream depends neither on its batch, nor on its row in it, nor on having been preempted.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.kernels.interface import Kernels

# Most distributions keep fewer tokens than this under top-p; sorting them is 20 times cheaper than a whole vocabulary.
_FEW_CANDIDATES = 256
_GROWTH = 8


@dataclass(slots=True)
class SamplingBatch:
    """Sampling parameters of a step's sampled rows, on the host: [num_sampled] each.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off. `seeds` holds the bits of unsigned numbers;
    `positions` are output positions of the tokens to be drawn.
    """

    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int64]
    top_p: npt.NDArray[np.float32]
    min_p: npt.NDArray[np.float32]
    seeds: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    @property
    def has_filters(self) -> bool:
        """Whether any row draws under top-k, top-p or min-p."""
        return bool(((self.temperature > 0) & self._is_filtered).any())

    @property
    def filtered_rows(self) -> npt.NDArray[np.int64]:
        """Rows that draw under top-k, top-p or min-p, unless they are greedy."""
        return np.flatnonzero(self._is_filtered)

    @property
    def _is_filtered(self) -> npt.NDArray[np.bool_]:
        return (self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0)

    def take(self, rows: npt.NDArray[np.int64]) -> "SamplingBatch":
        """The parameters of some rows."""
        return SamplingBatch(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.seeds[rows],
            self.positions[rows],
        )


class Sampler:
    """Chooses one token per row, on the device of the logits."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose.

        Args:
            logits: [num_sampled, vocab] float32.

        Returns:
            Token ids, [num_sampled] int64, and whether all logits of a row are finite, [num_sampled] bool. Where they
            are not the token means nothing, but is one of the vocabulary.
        """
        # One pass without a temporary: a sum is finite only if every summand is.
        finite = logits.sum(dim=-1).isfinite()
        random = np.flatnonzero(batch.temperature > 0)
        if len(random) == 0:
            return logits.argmax(dim=-1), finite
        if len(random) == len(logits):
            return self._draw(logits, batch), finite
        rows = on_device_of(logits, random)
        tokens = logits.argmax(dim=-1)
        tokens[rows] = self._draw(logits[rows], batch.take(random))
        return tokens, finite

    def _draw(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """One token per row from the softmax of logits / temperature, after min-p, then top-k, then top-p."""
        scaled = logits / on_device_of(logits, batch.temperature)[:, None]
        filtered = batch.filtered_rows
        if len(filtered) == len(logits):
            _drop_unlikely(scaled, batch)
        elif len(filtered) > 0:
            rows = on_device_of(logits, filtered)
            part = scaled[rows]
            _drop_unlikely(part, batch.take(filtered))
            scaled[rows] = part
        noisy = self._kernels.add_gumbel_noise(
            scaled, on_device_of(logits, batch.seeds), on_device_of(logits, batch.positions)
        )
        return noisy.argmax(dim=-1)


def _drop_unlikely(scaled: torch.Tensor, batch: SamplingBatch) -> None:
    """Set to -inf what min-p, top-k and top-p exclude. Each keeps the tokens at or above a value: ties stay in.

    Args:
        scaled: [num_rows, vocab] float32, logits / temperature; changed in place.
    """
    highest = scaled.amax(dim=-1, keepdim=True)
    least = highest + on_device_of(scaled, batch.min_p)[:, None].log()
    if (batch.top_k > 0).any():
        least = torch.maximum(least, _kth_largest(scaled, batch.top_k))
    if (batch.top_p < 1).any():
        least = torch.maximum(least, _nucleus_edge(scaled, highest, least, on_device_of(scaled, batch.top_p)[:, None]))
    scaled.masked_fill_(scaled < least, float("-inf"))


def _kth_largest(scaled: torch.Tensor, top_k: npt.NDArray[np.int64]) -> torch.Tensor:
    """The top_k-th largest value of each row, -inf where top_k is 0: [num_rows, 1]."""
    vocab = scaled.shape[-1]
    ranks = np.minimum(top_k, vocab)
    values = scaled.topk(int(ranks.max()), dim=-1).values
    kth = values.gather(1, on_device_of(scaled, np.maximum(ranks - 1, 0))[:, None])
    return kth.masked_fill(on_device_of(scaled, ranks == 0)[:, None], float("-inf"))


def _nucleus_edge(
    scaled: torch.Tensor, highest: torch.Tensor, least: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """The value of the least likely token that is still needed to reach top_p of the mass at or above `least`.

    Looks at the few largest values first; where the mass of all rows is not reached among them, at more. Off a CPU,
    where looking at the outcome would stop the device, at all of them.

    Args:
        highest, least, top_p: [num_rows, 1].
    """
    vocab = scaled.shape[-1]
    mass = (scaled - highest).exp_().masked_fill_(scaled < least, 0).sum(dim=-1, keepdim=True)
    count = min(_FEW_CANDIDATES, vocab) if scaled.device.type == "cpu" else vocab
    while True:
        values = scaled.topk(count, dim=-1).values
        reached = (values - highest).exp_().masked_fill_(values < least, 0).cumsum(dim=-1) >= top_p * mass
        if count == vocab or bool(reached[:, -1].all()):
            break
        count = min(count * _GROWTH, vocab)
    # Rounding may keep the last sum below its goal: then no token is excluded.
    edge = values.gather(1, reached.int().argmax(dim=-1, keepdim=True))
    return edge.masked_fill(~reached[:, -1:] | (top_p >= 1), float("-inf"))


def on_device_of(like: torch.Tensor, array: npt.NDArray[np.generic]) -> torch.Tensor:
    """An array where a tensor is; the host does not wait for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else tensor
