"""What are the log probabilities of a step's prompt tokens?

They need the logits of all their positions, where a step else makes those of its draws alone. So they are made a few
rows at a time, outside any graph: steps without such rows pay nothing, those with them no more memory than draws take.
"""

import torch

from gpu_worker.execution.device_slots import DeviceSlots
from gpu_worker.models.decoder import DecoderModel
from gpu_worker.sampling.logprobs import find_logprobs
from gpu_worker.sampling.sampler import on_device_of
from gpu_worker.step_inputs import StepInputs

# Rows whose logits are there at one time.
_CHUNK = 256


def find_prompt_logprobs(
    model: DecoderModel, hidden: torch.Tensor, inputs: StepInputs, slots: DeviceSlots, most_rows: int
) -> torch.Tensor:
    """A table of the wanted rows, see find_logprobs.

    Args:
        hidden: [num_tokens, hidden], after the last norm; rows of padding may follow.
        most_rows: of which the logits may be there at one time.
    """
    wanted = inputs.prompt_logprobs
    rows, places = on_device_of(hidden, wanted.rows), on_device_of(hidden, wanted.token_places)
    token_ids = slots.token_ids.index_select(0, places).long()
    most, size = int(wanted.num_logprobs.max()), min(_CHUNK, most_rows)
    tables = [
        find_logprobs(
            model.vocab.gather(model.compute_logits(hidden.index_select(0, rows[start : start + size]))),
            token_ids[start : start + size],
            most,
        )
        for start in range(0, len(wanted), size)
    ]
    return torch.cat(tables)
