"""Who makes a call, and what may they do? One Caller follows the call through every protocol."""

import enum
from contextvars import ContextVar
from dataclasses import dataclass, field

from scheduler_service.gateway.exceptions import NotAllowedError


class Role(enum.StrEnum):
    """What a key may be used for."""

    GENERATE = "generate"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What one tenant may use of one gateway; None: as much as there is."""

    max_concurrent_requests: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_priority: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody whose key is known; `tenant` is for logs and messages, and never a secret.

    `cache_salt` keeps the KV blocks of the tenant's requests from requests with other salts.
    """

    tenant: str
    roles: frozenset[Role]
    limits: CallerLimits = field(default_factory=CallerLimits)
    cache_salt: str = ""

    def check_role(self, role: Role, method: str) -> None:
        """May this caller use a method that is for this role?

        Raises:
            NotAllowedError: no.
        """
        if role not in self.roles:
            raise NotAllowedError(f"the key {self.tenant!r} may not call {method}: that needs the role {role}")

    def allowed_priority(self, priority: int) -> int:
        """The priority that a request of this caller gets: the one it asks for, or the most there is if it asks none.

        Raises:
            NotAllowedError: it asks for more than it may.
        """
        most = self.limits.max_priority
        if most is None or priority <= most:
            return priority
        if priority == 0:
            return most
        raise NotAllowedError(
            f"priority: is {priority}, and the key {self.tenant!r} allows at most {most}: ask for less"
        )

    def salted(self, request_salt: str) -> str:
        """The salt under which a request's KV blocks are shared: its own within the tenant's."""
        return f"{self.cache_salt}\0{request_salt}" if self.cache_salt else request_salt


ANYONE = Caller("", frozenset(Role))
"""Who calls where no keys are asked for."""

_current: ContextVar[Caller] = ContextVar("caller", default=ANYONE)


def current_caller() -> Caller:
    """Who makes the call that this task serves."""
    return _current.get()


def set_current_caller(caller: Caller) -> None:
    """Note who makes the call, for this task and those that it starts."""
    _current.set(caller)
