"""Where on the device are the tokens and the block tables of all slots?"""

import numpy as np
import torch

from gpu_worker.step_inputs import SlotShape, StepInputs, Writes


class DeviceSlots:
    """Token ids and block tables. Both have a place that no sequence uses, for the rows that pad a batch.

    Attributes:
        token_ids: [max_num_seqs * width + 1] int32.
        block_tables: [max_num_seqs + 1, max_blocks] int32.
        tokens_by_slot: [max_num_seqs, width] int32, those token ids without the padding place.
        padding_place, padding_slot: the last of each.
    """

    def __init__(self, shape: SlotShape, device: torch.device) -> None:
        self._device = device
        self.padding_place = shape.padding_place
        self.padding_slot = shape.max_num_seqs
        self.token_ids = torch.zeros(self.padding_place + 1, dtype=torch.int32, device=device)
        self.tokens_by_slot = self.token_ids[:-1].view(shape.max_num_seqs, shape.width)
        self.block_tables = torch.zeros((shape.max_num_seqs + 1, shape.max_blocks), dtype=torch.int32, device=device)

    def write(self, inputs: StepInputs) -> None:
        """Write a step's new tokens and blocks, in stream order."""
        self._write(self.token_ids, inputs.new_tokens)
        self._write(self.block_tables.view(-1), inputs.new_blocks)

    def _write(self, target: torch.Tensor, writes: Writes) -> None:
        """Places and values travel in one copy."""
        count = len(writes.places)
        if count == 0:
            return
        packed = torch.empty(3 * count, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        host = packed.numpy()
        host[: 2 * count].view(np.int64)[:] = writes.places
        host[2 * count :] = writes.values
        there = packed.to(self._device, non_blocking=True)
        target.scatter_(0, there[: 2 * count].view(torch.int64), there[2 * count :])
