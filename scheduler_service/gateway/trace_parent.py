"""Which trace does the call that is being answered belong to? Its protocol says so, where the caller told it."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The headers of W3C Trace Context, as the caller sent them; they may be ill."""

    traceparent: str = ""
    tracestate: str = ""


_NONE = TraceParent()
_current: ContextVar[TraceParent] = ContextVar("trace_parent", default=_NONE)


def set_trace_parent(parent: TraceParent) -> None:
    """The call that is answered in this task belongs to this trace."""
    _current.set(parent)


def trace_parent() -> TraceParent:
    """What the caller sent; empty if nothing."""
    return _current.get()
