"""The worker behind a service under attack: tests.fakes.fake_worker as a process, which dies of what it must not get.

python -m tests.hostile.worker ADDRESS NUM_BLOCKS
"""

import sys

from pagewire.ipc.requests import ModelInfo
from tests.fakes.fake_worker import FakeWorker

# Its tokenizer is tests.fakes.tiny_model's.
MODEL = ModelInfo(architecture="fake", vocab_size=268, max_model_len=512, eos_token_ids=(265,))

if __name__ == "__main__":
    FakeWorker(sys.argv[1], int(sys.argv[2]), model=MODEL).wait()
    sys.exit(1)
