"""Where is every gRPC call checked, whichever service it is for? Before its handler is looked up, once per call."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from scheduler_service.gateway.auth.caller import set_current_caller
from scheduler_service.gateway.auth.keyring import Keyring
from scheduler_service.gateway.auth.methods import is_open, role_for
from scheduler_service.gateway.errors import refusing_handler
from scheduler_service.gateway.exceptions import RequestError

logger = logging.getLogger(__name__)

_MAX_LOGGED_CHARS = 100
_METADATA_KEY = "authorization"


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls with a valid key through, and notes who calls.

    Args:
        keyring: the valid keys.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Find the handler of a call, or one that refuses it."""
        method = handler_call_details.method
        if not is_open(method):
            try:
                caller = self._keyring.authenticate(_authorization(handler_call_details.invocation_metadata))
                role = role_for(method)
                if role is not None:
                    caller.check_role(role, method)
            except RequestError as error:
                logger.info("call refused method=%r reason=%s", method[:_MAX_LOGGED_CHARS], error)
                return refusing_handler(error)
            # gRPC runs the handler in this very task.
            set_current_caller(caller)
        return await continuation(handler_call_details)


def _authorization(metadata: Sequence[tuple[str, str | bytes]]) -> str | None:
    """The one value there is; of several nobody can say which is meant."""
    values = [value for key, value in metadata if key == _METADATA_KEY]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None
