"""What is said to a caller whose request no engine takes?"""

from pagewire.ipc.requests import Rejected, RejectReason
from scheduler_service.gateway.exceptions import (
    EngineOverloadedError,
    EngineUnavailableError,
    InvalidArgumentError,
    RequestError,
)

# Submit field -> field of the public API.
_PUBLIC_FIELDS = {"token_ids": "prompt", "max_tokens": "stopping.max_tokens", "resumes": "resume"}


class Refusals:
    """The engines that have refused one request, and why."""

    def __init__(self) -> None:
        self._by_address: dict[str, Rejected] = {}

    def __contains__(self, address: str) -> bool:
        return address in self._by_address

    def add(self, address: str, rejected: Rejected) -> None:
        """The engine at this address does not take it."""
        self._by_address[address] = rejected

    @property
    def error(self) -> RequestError:
        """The word on all of them: full engines have room sooner than absent ones."""
        full = [each for each in self._by_address.values() if each.reason is RejectReason.OVERLOADED]
        if full:
            return to_error(min(full, key=lambda rejected: rejected.retry_after_s))
        return to_error(next(iter(self._by_address.values())))


def to_error(rejected: Rejected) -> RequestError:
    """A scheduler's refusal as its caller hears it."""
    match rejected.reason:
        case RejectReason.INVALID:
            return InvalidArgumentError(_PUBLIC_FIELDS.get(rejected.field, rejected.field), rejected.message)
        case RejectReason.OVERLOADED:
            return EngineOverloadedError(rejected.message, rejected.field, rejected.retry_after_s)
        case RejectReason.UNAVAILABLE:
            return EngineUnavailableError(rejected.message)
