"""How is the engine as callers see it, when it is several engines?"""

from collections.abc import Iterable, Sequence

from pagewire.ipc.requests import EngineState, EngineStatus, Limits, Load, ModelInfo
from scheduler_service.gateway.exceptions import EngineUnavailableError

# The nearer to being READY, the more it says about all.
_ORDER = (EngineState.READY, EngineState.STARTING, EngineState.DRAINING, EngineState.UNAVAILABLE)


def unknown_status(state: EngineState, *, stage: str = "", detail: str = "") -> EngineStatus:
    """What is known without a word from the scheduler."""
    return EngineStatus(state, None, None, Load(0, 0, 0), stage, 0, 0, detail)


def merge(statuses: Sequence[EngineStatus]) -> EngineStatus:
    """One status for all: the state of the best, and what those that are READY have together."""
    if not statuses:
        return unknown_status(EngineState.STARTING, stage="looking for engines")
    if len(statuses) == 1:
        return statuses[0]
    best = min(statuses, key=lambda status: _ORDER.index(status.state))
    ready = [status for status in statuses if status.state is EngineState.READY]
    limits = [status.limits for status in ready if status.limits is not None]
    return EngineStatus(
        state=best.state,
        model=best.model,
        limits=_sum_limits(limits) if limits else best.limits,
        load=_sum_loads([status.load for status in statuses]),
        stage=best.stage,
        done=best.done,
        total=best.total,
        detail=best.detail,
    )


def ready_engine(statuses: Sequence[EngineStatus]) -> tuple[ModelInfo, Limits]:
    """What the engines run, if one can run requests, and what every one of these takes: a request may go to any.

    Raises:
        EngineUnavailableError: none can; the message says what they are doing instead.
    """
    status = merge(statuses)
    if status.state is EngineState.UNAVAILABLE:
        raise EngineUnavailableError(f"the engine is unavailable: {status.detail}")
    if status.state is EngineState.DRAINING:
        raise EngineUnavailableError("the engine is shutting down and takes no new requests")
    if status.state is EngineState.STARTING:
        progress = f" ({status.done} of {status.total})" if status.total else ""
        raise EngineUnavailableError(f"the engine is starting: {status.stage or 'loading'}{progress}")
    assert status.model is not None
    ready = [each.limits for each in statuses if each.state is EngineState.READY and each.limits is not None]
    return status.model, _least_limits(ready)


def _sum_loads(loads: Sequence[Load]) -> Load:
    return Load(
        sum(load.num_running for load in loads),
        sum(load.num_waiting for load in loads),
        sum(load.num_free_blocks for load in loads),
        sum(load.num_tokens_to_compute for load in loads),
    )


def _sum_limits(limits: Sequence[Limits]) -> Limits:
    waiting_requests = _known(each.max_waiting_requests for each in limits)
    waiting_tokens = _known(each.max_waiting_tokens for each in limits)
    return Limits(
        max_model_len=min(each.max_model_len for each in limits),
        max_num_seqs=sum(each.max_num_seqs for each in limits),
        max_num_batched_tokens=sum(each.max_num_batched_tokens for each in limits),
        block_size=limits[0].block_size,
        num_blocks=sum(each.num_blocks for each in limits),
        max_waiting_requests=sum(waiting_requests) if waiting_requests else None,
        max_waiting_tokens=sum(waiting_tokens) if waiting_tokens else None,
    )


def _least_limits(limits: Sequence[Limits]) -> Limits:
    if len(limits) == 1:
        return limits[0]
    num_cache_tokens = min(each.num_blocks * each.block_size for each in limits)
    block_size = limits[0].block_size
    return Limits(
        max_model_len=min(each.max_model_len for each in limits),
        max_num_seqs=min(each.max_num_seqs for each in limits),
        max_num_batched_tokens=min(each.max_num_batched_tokens for each in limits),
        block_size=block_size,
        num_blocks=num_cache_tokens // block_size,
        max_waiting_requests=min(_known(each.max_waiting_requests for each in limits), default=None),
        max_waiting_tokens=min(_known(each.max_waiting_tokens for each in limits), default=None),
    )


def _known(values: Iterable[int | None]) -> list[int]:
    return [value for value in values if value is not None]
