"""Which log probabilities of prompt tokens have arrived for a stream and were not given out yet?"""

from array import array

from pagewire.ipc.requests import logprob_record_bytes
from scheduler_service.gateway.generation import Generation

# Bounds the size of one message.
_MAX_TOKENS = 4096


class PromptLogprobs:
    """Records of the prompt's tokens, from the second on; all of them are there before the first output token is.

    prompt_ids:  | the first | given out ... | arrived .... | to come |
                 0           1        num_given + 1   num_known + 1
    """

    __slots__ = ("_num_given", "_prompt_ids", "_record_bytes", "_records")

    def __init__(self, generation: Generation) -> None:
        self._prompt_ids = generation.prompt_ids
        self._record_bytes = logprob_record_bytes(generation.sampling.num_prompt_logprobs or 0)
        self._num_given = generation.num_received_prompt_logprobs
        self._records = bytearray()

    def __bool__(self) -> bool:
        """Whether any wait to be given out."""
        return bool(self._records)

    @property
    def num_known(self) -> int:
        """Records that have arrived, or that the caller has."""
        return self._num_given + len(self._records) // self._record_bytes

    def push(self, records: bytes) -> None:
        """The next ones arrived; see pagewire.ipc.requests."""
        self._records += records

    def take(self) -> tuple["array[int]", bytes]:
        """The next tokens and their records, as many as fit a message."""
        count = min(_MAX_TOKENS, len(self._records) // self._record_bytes)
        token_ids = self._prompt_ids[self._num_given + 1 : self._num_given + 1 + count]
        records = bytes(self._records[: count * self._record_bytes])
        del self._records[: count * self._record_bytes]
        self._num_given += count
        return token_ids, records
