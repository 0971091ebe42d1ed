"""Messages between a gateway and the scheduler.

A gateway greets with `Hello`, then sends `Submit` and `Abort`, and `Goodbye` when it stops. The scheduler answers the
greeting with `EngineStatus`, and sends that several times a second too; it answers a refused request with `Rejected`,
and after each step, and when it has accepted requests, sends each gateway one `StepTokens`. It answers `GetMetrics`
with `MetricValues` and `Locate` with `Located`. Messages about the prefix cache are in cache_events.

Int arrays travel as little-endian bytes: `token_ids` and `stop` ids as int32, `stream_ids` and `accepted` as uint32.

Log probabilities travel as one record per token, of `logprob_record_bytes`: rank (int32; 1 is the most likely) and log
probability (float32) of the token, then token id (int32) and log probability of each alternative, most likely first.
Those of a prompt begin with its second token: nothing predicts the first.
"""

import enum

import msgspec

from pagewire.ipc.cache_events import CacheEvents, CacheFlushed, FlushCache, WatchCache
from pagewire.ipc.metrics import Family


class Hello(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """A gateway's greeting, sent until the scheduler answers, and again when it is quiet. `number` rises with each: one
    that a network delivers late does not say where the gateway is now."""

    version: str
    number: int = 0


class Penalties(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How tokens that are there already become less likely. In this order: `repetition` divides positive and multiplies
    negative logits of tokens in prompt or output (1 is off); `frequency` is subtracted once per occurrence in the
    output, `presence` once for any (0 is off)."""

    repetition: float
    frequency: float
    presence: float


MAX_BAD_WORD_TOKENS = 32
"""Tokens that a bad word may have."""


class TokenRules(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which tokens may be drawn, before penalties: of the allowed ones (none: of all) those that are not banned, after
    `biases` (float32) are added to the logits of `bias_ids`. The last token of a bad word is not drawn where the
    others end the output. Ids are int32, each named once."""

    allowed_ids: bytes = b""
    banned_ids: bytes = b""
    bias_ids: bytes = b""
    biases: bytes = b""
    bad_words: tuple[bytes, ...] = ()


class Sampling(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How the next token is chosen, and what is told about the choice. Ranges are checked by the gateway.

    temperature 0 means greedy; top_k 0 means all; top_p 1 and min_p 0 mean off. `num_logprobs`: each token comes with
    its log probability and those of so many alternatives; None: without any. `num_prompt_logprobs`: the same for the
    tokens of the prompt.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    penalties: Penalties | None = None
    num_logprobs: int | None = None
    rules: TokenRules | None = None
    num_prompt_logprobs: int | None = None


def logprob_record_bytes(num_logprobs: int) -> int:
    """Size of the log probabilities of one token with so many alternatives."""
    return 8 * (1 + num_logprobs)


class Submit(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """A request to run.

    `token_ids` is the prompt followed by the output tokens the caller already has (none for a new request);
    `max_tokens` counts output tokens, those included. `deadline_s` is Unix time. `resumes`: a sequence of this
    request id that still lives is continued, from whichever stream it belongs to; if there is none, there is only the
    caller's word that the request was accepted before. `was_accepted`: the gateway knows that it was, by this scheduler
    or another, and it is not refused for want of room. `num_known_prompt_logprobs`: the caller has the first so many
    records of the prompt's tokens. `tenant`: whose request it is; those who wait are served fairly. `trace_context`
    names the span that this belongs to (W3C traceparent); empty: nobody traces it. `num_deaths`: so many workers of
    other engines died while they ran it, and it has not got further since.
    """

    stream_id: int
    request_id: str
    token_ids: bytes
    num_prompt_tokens: int
    sampling: Sampling
    max_tokens: int | None
    min_tokens: int
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    priority: int
    cache_salt: str
    deadline_s: float | None
    resumes: bool = False
    was_accepted: bool = False
    num_known_prompt_logprobs: int = 0
    tenant: str = ""
    trace_context: str = ""
    num_deaths: int = 0


class Abort(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """The caller of these streams is gone or has what it wants: stop them without a further message.

    `complete_ids`: those of them that are complete, as their gateway found.
    """

    stream_ids: tuple[int, ...]
    complete_ids: tuple[int, ...] = ()


class Goodbye(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """This gateway stops: forget it, and stop all its streams without a further message."""


class GetMetrics(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    """Tell the engine's metrics; the answer has the same number."""

    number: int


class Locate(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=6):
    """Can this request, which its caller resumes, be gone on with here? The answer has the same number."""

    number: int
    request_id: str


GatewayMessage = Hello | Submit | Abort | Goodbye | GetMetrics | Locate | WatchCache | FlushCache


class EngineState(enum.IntEnum):
    """Whether the engine can run requests. DRAINING: it finishes what it has, takes no new requests, and then ends."""

    STARTING = 1
    READY = 2
    UNAVAILABLE = 3
    DRAINING = 4


class ModelInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the worker knows about the loaded model. Lengths are in tokens."""

    architecture: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]


class Limits(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Limits that requests are checked against. Those of the queue are None where they are not known."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    max_waiting_requests: int | None = None
    max_waiting_tokens: int | None = None


class Load(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The scheduler's queues at one moment. `num_tokens_to_compute`: of prompts, whether they run or wait; what of a
    waiting one is cached is not known before it runs."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_tokens_to_compute: int = 0


class EngineStatus(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=11):
    """State of scheduler and workers. `model` and `limits` are set once the engine has been READY.

    While STARTING, `stage`, `done` and `total` (0: unknown) say how far it is; `detail` says why it is UNAVAILABLE, or
    what it does while DRAINING. `model_name` is what its operator calls the model; empty: nobody said. `session` is
    another once the scheduler has forgotten the gateway that it tells: nothing that was submitted before runs for it.
    """

    state: EngineState
    model: ModelInfo | None
    limits: Limits | None
    load: Load
    stage: str
    done: int
    total: int
    detail: str
    model_name: str = ""
    session: int = 0


class RejectReason(enum.IntEnum):
    """Why a request was not taken."""

    INVALID = 1
    OVERLOADED = 2
    UNAVAILABLE = 3


class Rejected(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=12):
    """The request was not taken. `field` names the offending Submit field for INVALID, the limit that is reached for
    OVERLOADED; `retry_after_s`: there may be room then."""

    stream_id: int
    reason: RejectReason
    field: str
    message: str
    retry_after_s: float = 0.0


class EndReason(enum.IntEnum):
    """Why a stream ended. REPLACED: another stream goes on with its sequence."""

    STOP = 1
    LENGTH = 2
    DEADLINE = 3
    FAILED = 4
    REPLACED = 5


class Ended(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The last word about one stream. `stop_token_id` is set for STOP; `detail` says what FAILED."""

    stream_id: int
    reason: EndReason
    stop_token_id: int | None
    num_cached_tokens: int
    detail: str


class Started(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A stream's sequence runs: so many of its prompt tokens were found in the prefix cache."""

    stream_id: int
    num_cached_tokens: int


class StepTokens(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=13):
    """All news for one gateway: some streams were accepted, some started, stream_ids[i] produced token_ids[i], and some
    ended.

    `logprobs`: for each stream that wants them, by its id, the records of its tokens in this message;
    `prompt_logprobs`: the next records of its prompt's tokens, all of which come before or with its first token.
    """

    stream_ids: bytes
    token_ids: bytes
    ended: list[Ended]
    started: list[Started] = []
    logprobs: dict[int, bytes] = {}
    accepted: bytes = b""
    prompt_logprobs: dict[int, bytes] = {}


class MetricValues(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=14):
    """Values of this moment. Every sample has these labels beside its own."""

    number: int
    labels: dict[str, str]
    families: list[Family]


class Located(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=15):
    """Whether the request has a sequence here."""

    number: int
    is_here: bool


SchedulerMessage = EngineStatus | Rejected | StepTokens | MetricValues | Located | CacheEvents | CacheFlushed
