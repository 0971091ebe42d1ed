"""How do the scheduler's records of log probabilities become protobuf messages?"""

import struct
from collections.abc import Iterator, Sequence

from pagewire.ipc.requests import logprob_record_bytes
from pagewire.v1 import generate_pb2

_PAIR = struct.Struct("<if")


def to_protos(token_ids: Sequence[int], records: bytes, num_logprobs: int) -> Iterator[generate_pb2.TokenLogprobs]:
    """One message per token.

    Args:
        records: see pagewire.ipc.requests; one per token.
        num_logprobs: alternatives in each.
    """
    size = logprob_record_bytes(num_logprobs)
    for index, token_id in enumerate(token_ids):
        (rank, logprob), *top = _PAIR.iter_unpack(records[index * size : (index + 1) * size])
        yield generate_pb2.TokenLogprobs(
            token_id=token_id,
            logprob=logprob,
            rank=rank,
            top=[generate_pb2.TopLogprob(token_id=other, logprob=other_logprob) for other, other_logprob in top],
        )
