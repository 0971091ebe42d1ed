"""What does a caller have of one choice, who kept no token ids? How many, and a checksum of them.

With these a stream can be resumed as well: it is run again, or taken up from its beginning where its sequence still
lives, and what was sent is passed over. That the tokens come out the same is what sampling as a pure function
promises; the checksum tells where it does not hold, as on GPUs whose sums depend on the batch.
"""

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SentTokens:
    """The first tokens of one choice. `checksum` is the CRC-32 of their ids as int32."""

    num_tokens: int = 0
    checksum: int = 0

    def after(self, token_ids: Sequence[int]) -> "SentTokens":
        """With further tokens."""
        checksum = zlib.crc32(array("i", token_ids).tobytes(), self.checksum)
        return SentTokens(self.num_tokens + len(token_ids), checksum)


NOTHING_SENT = SentTokens()
