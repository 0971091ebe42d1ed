"""The real worker, except that a token id in its input kills it: python -m tests.fakes.poisoned_worker FLAGS...

The environment says which: PAGEWIRE_TEST_POISON is a token id, and PAGEWIRE_TEST_DEATHS a file that gets a line of each
death.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from gpu_worker.__main__ import main
from gpu_worker.attention.backend import AttentionMetadata
from gpu_worker.models.decoder import DecoderModel

_forward = DecoderModel.forward


def forward_unless_poisoned(
    self: DecoderModel,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    kv_caches: Sequence[torch.Tensor],
    metadata: AttentionMetadata,
) -> torch.Tensor:
    if int(os.environ["PAGEWIRE_TEST_POISON"]) in input_ids.tolist():
        with Path(os.environ["PAGEWIRE_TEST_DEATHS"]).open("a") as deaths:
            deaths.write(f"{os.getpid()} {len(metadata.seq_lens)} sequences\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return _forward(self, input_ids, positions, kv_caches, metadata)


if __name__ == "__main__":
    DecoderModel.forward = forward_unless_poisoned  # type: ignore[method-assign]
    sys.exit(main())
