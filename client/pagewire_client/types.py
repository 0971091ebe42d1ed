"""What does the client hand back? Small frozen values, independent of protobuf."""

import enum
from dataclasses import dataclass


class FinishReason(enum.Enum):
    """Why a completion ended. STOP: an end-of-sequence token, stop token or stop text; LENGTH: a limit was reached."""

    UNKNOWN = "unknown"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request; cached tokens are prompt tokens whose KV blocks were found in the prefix cache."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """Log probability of one alternative."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probability (natural logarithm) of one token, its rank (1: most likely) and the alternatives."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """New output of one choice. Any part may be empty: text is held back while it could be half a character.

    Before all output come the prompt's log probabilities, if asked for: an entry per token from the second on, with
    choice 0. With `echo` the first chunk of a choice is the prompt: `prompt_token_ids` and their text.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server's first word: with id, seed and the tokens received so far a stream can be resumed anywhere."""

    request_id: str
    seed: int
    num_prompt_tokens: int
    model: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the n completions of a prompt. `matched` is the stop text or stop token that ended it."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    matched: str | int | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `text`, `token_ids` and `finish_reason` are those of the first choice.

    `prompt_logprobs`: if asked for, an entry per prompt token from the second on. With `echo` texts begin with the
    prompt's; token ids never do.
    """

    request_id: str
    seed: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Token ids of the first choice."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.choices[0].finish_reason


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenized prompt, and the longest prompt plus output that the model takes."""

    token_ids: tuple[int, ...]
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Model:
    """A served model; lengths are in tokens."""

    name: str
    architecture: str
    max_model_len: int
    vocab_size: int
    has_chat_template: bool


class EngineState(enum.Enum):
    """Whether the engine behind a gateway can run requests."""

    UNKNOWN = "unknown"
    STARTING = "starting"
    READY = "ready"
    UNAVAILABLE = "unavailable"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a slow part of the start is; total 0 means not known."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits that requests are checked against; lengths are in tokens."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """The scheduler's queues at its last report."""

    num_running: int
    num_waiting: int
    num_free_blocks: int


class ProcessState(enum.Enum):
    """What a process, or the service as a whole, does."""

    UNKNOWN = "unknown"
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    HUNG = "hung"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a service. `last_step_age_s` is the time since its last step ended, None before the first."""

    name: str
    state: ProcessState
    detail: str
    pid: int
    incarnation: str
    num_restarts: int
    num_steps: int
    last_step_age_s: float | None


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine that a gateway knows: a scheduler and its workers. `detail` says why it is not READY."""

    address: str
    scheduler_incarnation: str
    state: EngineState
    detail: str
    load: ServerLoad
    num_streams: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Versions, limits and state of the processes behind a gateway.

    `state` is that of the engine, `detail` says why it is UNAVAILABLE. `service_state` and its reason are what health
    checks follow; `processes` is empty where the service has no supervisor. Of several engines, `state` is that of the
    best, and `limits` and `load` are those of all together.
    """

    version: str
    gateway_incarnation: str
    scheduler_incarnation: str
    state: EngineState
    limits: ServerLimits
    load: ServerLoad
    progress: Progress
    detail: str
    service_state: ProcessState = ProcessState.UNKNOWN
    service_state_reason: str = ""
    processes: tuple[Process, ...] = ()
    engines: tuple[Engine, ...] = ()
