"""Messages between the scheduler and its workers (one per tensor-parallel rank).

Start:  worker `WorkerHello` -> scheduler `EngineConfig` -> worker loads (`WorkerProgress` ...), measures its memory,
        `WorkerLoaded` -> scheduler `AllocateCache` -> worker `WorkerReady`. Several ranks get `JoinGroup` before
        `EngineConfig`, once all of them have greeted.
Run:    scheduler `StepBatch` to every rank; rank 0 answers each with one `StepOutput`, in order.

The worker mirrors the scheduler's sequences by slot and a `StepBatch` is a diff against that mirror. The worker counts
computed and known tokens itself: a slot scheduled for k tokens moves k forward, a sampled slot gains one known token.
So the token sampled last never has to come back before the next step reads it.

Int arrays travel as little-endian int32 bytes, flags as one byte each.
"""

import msgspec

from pagewire.ipc.requests import ModelInfo, Sampling


class WorkerHello(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """A worker's greeting, sent until the scheduler answers, and every second while no step comes. `group`: the one it
    has joined, empty before."""

    rank: int
    world_size: int
    pid: int
    group: bytes = b""


class WorkerProgress(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """How far a slow part of the start is; total 0 means unknown."""

    rank: int
    stage: str
    done: int
    total: int


class WorkerLoaded(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """Weights are loaded and memory was measured: at most `num_blocks` KV blocks fit this rank."""

    rank: int
    num_blocks: int
    model: ModelInfo


class LeftSequence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an earlier scheduler has left in KV blocks: these tokens, which fill them, and gave finite logits."""

    token_ids: bytes
    block_ids: bytes
    cache_salt: str


class WorkerReady(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """The KV cache is allocated; step batches may come. `left`: what it holds already, for a new scheduler to share."""

    rank: int
    left: tuple[LeftSequence, ...] = ()


class WorkerFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    """The worker is about to exit, and why, in one line for a person."""

    rank: int
    detail: str


class StepOutput(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=6):
    """Result of one step: one token per sampled slot, in the order of StepBatch.slots.

    `nan_flags[i]` is 1 where the i-th sampled slot's logits were not finite; its token means nothing. `logprobs`: the
    records (see pagewire.ipc.requests) of those tokens whose sequences want them, in the same order. `prompt_logprobs`:
    the records of prompt tokens, of all slots that want them in the order of StepBatch.slots: of the tokens that follow
    those which the step computed, as far as they are the prompt's and their records were not known before.
    """

    step_id: int
    token_ids: bytes
    nan_flags: bytes
    logprobs: bytes = b""
    prompt_logprobs: bytes = b""


WorkerMessage = WorkerHello | WorkerProgress | WorkerLoaded | WorkerReady | WorkerFailed | StepOutput


class EngineConfig(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=11):
    """Sizes that the scheduler decides. `max_model_len` None: the model's own; `num_blocks` None: what fits."""

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    num_blocks: int | None


class AllocateCache(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=12):
    """Allocate this many KV blocks: the least any rank has room for."""

    num_blocks: int


class JoinGroup(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=14):
    """Meet the other ranks that are told the same name. A process joins one group; told of another, it exits."""

    name: bytes


class AddedSequence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A sequence that takes a slot.

    `token_ids` are all its tokens, prompt then output; `num_computed_tokens` of them are already in its blocks
    (prefix cache). `block_ids` is its block table so far. The random number of output position i depends on
    (sampling.seed, i), i counted from the end of the prompt. None of `end_token_ids` is drawn among the first
    `min_tokens` output tokens. `cache_salt` is that of the request, for LeftSequence. If records of prompt tokens are
    wanted, the first `num_known_prompt_logprobs` are not wanted again; if more are, that is at least
    `num_computed_tokens`. `trace_context` names the span that this belongs to (W3C traceparent); empty: nobody traces
    it.
    """

    slot: int
    request_id: str
    token_ids: bytes
    num_prompt_tokens: int
    num_computed_tokens: int
    block_ids: bytes
    sampling: Sampling
    min_tokens: int = 0
    end_token_ids: bytes = b""
    cache_salt: str = ""
    num_known_prompt_logprobs: int = 0
    trace_context: str = ""


class StepBatch(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=13):
    """One forward pass. Applied in this order: removed slots, added sequences, new blocks, then the step itself.

    Slot slots[i] computes its next num_tokens[i] tokens; where sampled[i] is 1 those end with its last known token and
    a new one is drawn. Block block_ids[j] is appended to the block table of slot block_slots[j].
    """

    step_id: int
    removed: bytes
    added: list[AddedSequence]
    block_slots: bytes
    block_ids: bytes
    slots: bytes
    num_tokens: bytes
    sampled: bytes


SchedulerStepMessage = JoinGroup | EngineConfig | AllocateCache | StepBatch
