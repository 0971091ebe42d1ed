"""Where is every HTTP request checked, whichever protocol it is of? Before its route is looked up."""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler_service.gateway.auth.caller import Role, set_current_caller
from scheduler_service.gateway.auth.keyring import Keyring
from scheduler_service.gateway.exceptions import RequestError
from scheduler_service.gateway.http.errors import error_response

# Probes have no keys. A path that is not named here needs one, so no new one is ever open.
_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})


class KeyCheck:
    """Lets requests with a valid key through, and notes who makes them.

    Args:
        app: what is wrapped.
        keyring: the valid keys.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app, path = self._app, scope["path"]
        if path not in _OPEN_PATHS:
            try:
                values = Headers(scope=scope).getlist("authorization")
                # Of several nobody can say which is meant.
                caller = self._keyring.authenticate(values[0] if len(values) == 1 else None)
                caller.check_role(Role.GENERATE, path)
            except RequestError as error:
                app = error_response(error)
                if app.status_code == HTTPStatus.UNAUTHORIZED:
                    app.headers["WWW-Authenticate"] = "Bearer"
            else:
                # The request is answered in this very task and those that it starts.
                set_current_caller(caller)
        await app(scope, receive, send)
