"""How is a step drawn some of whose rows have token rules or penalties, or want log probabilities?

Operation by operation, outside any graph: steps without such rows pay nothing for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpu_worker.execution.device_slots import DeviceSlots
from gpu_worker.parallel import VocabPart
from gpu_worker.sampling.logprobs import find_logprobs
from gpu_worker.sampling.penalties import apply_penalties
from gpu_worker.sampling.sampler import on_device_of
from gpu_worker.sampling.token_rules import apply_rules
from gpu_worker.step_inputs import StepInputs

Choose = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Draws from logits of the whole vocabulary, [num_sampled, vocab]: see Sampler.sample."""


@dataclass(frozen=True, slots=True)
class ShapedDraw:
    """Tokens, [num_sampled] int64; whether their logits are finite; and a table of log probabilities of some rows (see
    find_logprobs), which is on the device."""

    token_ids: torch.Tensor
    finite: torch.Tensor
    logprobs: torch.Tensor


def draw_shaped(
    logits: torch.Tensor, inputs: StepInputs, slots: DeviceSlots, vocab: VocabPart, choose: Choose
) -> ShapedDraw:
    """Draw after rules and penalties, and look up log probabilities without them.

    Args:
        logits: [num_sampled, this rank's token ids] float32; may be changed. Rows of padding may follow.
    """
    logits = vocab.gather(logits)
    wanted = on_device_of(logits, inputs.logprobs.rows)
    unshaped = logits.index_select(0, wanted)
    # Rules could hide what is not finite.
    was_finite = logits.sum(dim=-1).isfinite()
    apply_rules(logits, inputs.rules, slots.tokens_by_slot)
    apply_penalties(logits, inputs.penalties, slots.tokens_by_slot)
    token_ids, finite = choose(logits)
    token_ids = vocab.parallel.broadcast(token_ids)
    most = int(inputs.logprobs.num_logprobs.max(initial=0))
    return ShapedDraw(token_ids, finite & was_finite, find_logprobs(unshaped, token_ids.index_select(0, wanted), most))
