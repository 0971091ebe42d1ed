"""One request as the scheduler sees it: its tokens, where it stands, what it holds."""

import enum
from array import array
from dataclasses import dataclass, field

from pagewire.ipc.requests import Ended, EndReason, Sampling, Submit, logprob_record_bytes
from scheduler_service.core.metrics.times import Times

# In place of the gateway of a sequence that has none: no process ever draws this incarnation.
NOBODY = b""


class Status(enum.Enum):
    """Where a sequence stands.

    PREEMPTING and ENDING sequences are no longer scheduled but keep their slot and blocks until no step in flight can
    write to them; what such a step still returns counts for a PREEMPTING sequence and is dropped for an ENDING one.
    """

    WAITING = enum.auto()
    RUNNING = enum.auto()
    PREEMPTING = enum.auto()
    ENDING = enum.auto()
    ENDED = enum.auto()


_LEGAL_MOVES = {
    Status.WAITING: {Status.RUNNING, Status.ENDED},
    Status.RUNNING: {Status.PREEMPTING, Status.ENDING},
    Status.PREEMPTING: {Status.WAITING, Status.ENDING},
    Status.ENDING: {Status.ENDED},
    Status.ENDED: set(),
}


@dataclass(slots=True, eq=False)
class Sequence:
    """A scheduled unit. Created WAITING; only `move_to` changes its status, and with it whether its last word
    has been said (`is_over`). `ended` is that word, if it came to an end of its own.

    token_ids:  | prompt .................. | output ....... |
                0                num_prompt_tokens           len(token_ids) <= max_total_tokens
    block_ids:  | full, hashed ... | full or partial | room |
                0     len(block_hashes) counts hashes known, computed from token_ids

    When it last got a slot it had num_admitted_tokens tokens, and num_shared_blocks blocks came from the prefix cache;
    until it first draws, promised_hashes are those of the full blocks that it will then offer for sharing.

    If log probabilities are wanted, `logprobs` has a record for each token drawn here: for the last ones of token_ids,
    from num_given_tokens on. If the prompt's are wanted, `prompt_logprobs` has those of its tokens that follow one
    computed here: all but the first num_given_prompt_logprobs, so far.

    `service` is what its tenant was charged for it; see tenant_service.py. `trace_context` names the span that what is
    done for it belongs to (W3C traceparent); empty: nobody traces it.
    """

    gateway: bytes
    stream_id: int
    request_id: str
    arrival: int
    token_ids: "array[int]"
    num_prompt_tokens: int
    max_total_tokens: int
    min_total_tokens: int
    stop_token_ids: frozenset[int]
    sampling: Sampling
    priority: int
    cache_salt: str
    deadline_s: float | None
    status: Status = Status.WAITING
    slot: int | None = None
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_cached_tokens: int | None = None
    num_admitted_tokens: int = 0
    num_shared_blocks: int = 0
    promised_hashes: list[bytes] = field(default_factory=list)
    num_given_tokens: int = 0
    logprobs: bytearray = field(default_factory=bytearray)
    is_over: bool = False
    ended: Ended | None = None
    tenant: str = ""
    service: int = 0
    num_given_prompt_logprobs: int = 0
    prompt_logprobs: bytearray = field(default_factory=bytearray)
    times: Times = field(default_factory=Times)
    trace_context: str = ""

    @classmethod
    def of(
        cls, submit: Submit, gateway: bytes, arrival: int, max_total_tokens: int, eos_token_ids: frozenset[int]
    ) -> "Sequence":
        """What a request asks for; `max_total_tokens` is prompt plus output at most."""
        stops = frozenset(submit.stop_token_ids)
        token_ids = array("i")
        token_ids.frombytes(submit.token_ids)
        return cls(
            gateway=gateway,
            stream_id=submit.stream_id,
            request_id=submit.request_id,
            arrival=arrival,
            token_ids=token_ids,
            num_prompt_tokens=submit.num_prompt_tokens,
            max_total_tokens=max_total_tokens,
            min_total_tokens=submit.num_prompt_tokens + submit.min_tokens,
            stop_token_ids=stops if submit.ignore_eos else stops | eos_token_ids,
            sampling=submit.sampling,
            priority=submit.priority,
            cache_salt=submit.cache_salt,
            deadline_s=submit.deadline_s,
            num_given_tokens=len(token_ids),
            tenant=submit.tenant,
            num_given_prompt_logprobs=submit.num_known_prompt_logprobs,
            trace_context=submit.trace_context,
        )

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: higher priority first, then first come. The last of an order is the youngest."""
        return (-self.priority, self.arrival)

    @property
    def is_complete(self) -> bool:
        """Whether it has all its tokens."""
        return self.ended is not None and self.ended.reason in (EndReason.STOP, EndReason.LENGTH)

    def knows_from(self, index: int, num_prompt_logprobs: int) -> bool:
        """Whether it can tell all that there is or will be from token_ids[index] and after so many records of the
        prompt on."""
        will_be_whole = not self.is_over or self.is_complete
        knows_prompt = (
            self.sampling.num_prompt_logprobs is None or num_prompt_logprobs >= self.num_given_prompt_logprobs
        )
        knows_output = self.sampling.num_logprobs is None or index >= self.num_given_tokens
        return will_be_whole and knows_prompt and knows_output

    def logprobs_from(self, index: int) -> bytes:
        """The records of token_ids[index] and those after it, which it knows."""
        assert self.sampling.num_logprobs is not None
        record_bytes = logprob_record_bytes(self.sampling.num_logprobs)
        return bytes(self.logprobs[(index - self.num_given_tokens) * record_bytes :])

    @property
    def num_known_prompt_logprobs(self) -> int:
        """Records of the prompt's tokens that came from the workers, or that the caller has."""
        if self.sampling.num_prompt_logprobs is None:
            return 0
        return self.num_given_prompt_logprobs + len(self.prompt_logprobs) // self._prompt_record_bytes

    def num_new_prompt_logprobs(self, num_computed: int) -> int:
        """Records of the prompt's tokens that are news once so many of its tokens are computed."""
        if self.sampling.num_prompt_logprobs is None:
            return 0
        return max(0, min(num_computed, self.num_prompt_tokens - 1) - self.num_known_prompt_logprobs)

    def prompt_logprobs_from(self, index: int) -> bytes:
        """All records of the prompt's tokens but the first so many, which it knows."""
        return bytes(self.prompt_logprobs[(index - self.num_given_prompt_logprobs) * self._prompt_record_bytes :])

    @property
    def num_shareable_tokens(self) -> int:
        """How many of its first tokens need not be computed if blocks are found that hold them: not those whose
        logits are wanted, and never the last."""
        if self.num_new_prompt_logprobs(self.num_prompt_tokens):
            return self.num_known_prompt_logprobs
        return len(self.token_ids) - 1

    @property
    def _prompt_record_bytes(self) -> int:
        return logprob_record_bytes(self.sampling.num_prompt_logprobs or 0)

    def move_to(self, status: Status) -> None:
        """Change the status along the table of legal moves."""
        assert status in _LEGAL_MOVES[self.status], f"{self.request_id}: {self.status.name} -> {status.name}"
        self.status = status
        self.is_over = status is Status.ENDING or status is Status.ENDED
