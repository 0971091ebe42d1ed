"""How do ranks that each have the logits of some token ids agree on one token?

Without filters only each rank's best value counts (Gumbel-max: noise is a function of the token id, so every rank can
make its own). Value and token id are packed into one integer that orders as they should, and the largest of all ranks
is the draw:

    | value, 32 bits | 2**31 - 1 - token id, 32 bits |      the higher value, then the lower token id, as argmax does
    | 2**63 - 1                                      |      some logit is not finite

Filters look at the whole distribution: then all logits are gathered, and what rank 0 draws counts.
"""

import numpy as np
import torch

from gpu_worker.kernels.interface import Kernels
from gpu_worker.parallel import VocabPart
from gpu_worker.sampling.sampler import Sampler, SamplingBatch, on_device_of

_LOW_BITS = 0x7FFFFFFF
_NOT_FINITE = 2**63 - 1


class ParallelSampler:
    """Chooses the tokens that Sampler chooses from all ranks' logits; the same ones on every rank."""

    def __init__(self, kernels: Kernels, vocab: VocabPart) -> None:
        self._kernels = kernels
        self._vocab = vocab
        self._sampler = Sampler(kernels)

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Sampler.sample.

        Args:
            logits: [num_sampled, this rank's token ids] float32.
        """
        if batch.has_filters:
            tokens, finite = self._sampler.sample(self._vocab.gather(logits), batch)
            return self._vocab.parallel.broadcast(tokens), finite
        values, columns = self._noisy(logits, batch).max(dim=-1)
        draws = pack_draws(values, columns + self._vocab.token_ids.start, logits.sum(dim=-1).isfinite())
        return unpack_draws(self._vocab.parallel.all_reduce_max(draws))

    def _noisy(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """Logits of greedy rows; of others, logits / temperature and noise."""
        random = np.flatnonzero(batch.temperature > 0)
        if len(random) == 0:
            return logits
        if len(random) == len(logits):
            return self._add_noise(logits, batch)
        rows = on_device_of(logits, random)
        noisy = logits.clone()
        noisy[rows] = self._add_noise(logits[rows], batch.take(random))
        return noisy

    def _add_noise(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        return self._kernels.add_gumbel_noise(
            logits / on_device_of(logits, batch.temperature)[:, None],
            on_device_of(logits, batch.seeds),
            on_device_of(logits, batch.positions),
            self._vocab.token_ids.start,
        )


def pack_draws(values: torch.Tensor, tokens: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """A rank's draws as integers of which the largest of all ranks is the draw, [num_sampled] int64.

    Args:
        values: [num_sampled] float32, where they are finite.
        tokens: [num_sampled] int64.
        finite: [num_sampled] bool, whether all the rank's logits are.
    """
    # Adding zero makes one zero of the two. Negative floats order backwards as integers.
    bits = (values + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ _LOW_BITS, bits).long()
    return torch.where(finite, (ordered << 32) | (_LOW_BITS - tokens), _NOT_FINITE)


def unpack_draws(draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, [num_sampled] int64, and whether all logits of a row are finite, [num_sampled] bool."""
    return _LOW_BITS - (draws & _LOW_BITS), draws != _NOT_FINITE
