"""Which paths does the gateway answer over HTTP?"""

from collections.abc import Sequence
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from scheduler_service.gateway.auth.keyring import Keyring
from scheduler_service.gateway.http.errors import error_body
from scheduler_service.gateway.http.keys import KeyCheck
from scheduler_service.gateway.http.manners import Manners
from scheduler_service.gateway.open_calls import OpenCalls


def make_app(
    routes: Sequence[BaseRoute], calls: OpenCalls, keyring: Keyring | None, observers: Sequence[Middleware] = ()
) -> Starlette:
    """Put the routes of all protocols together.

    Args:
        routes: theirs.
        calls: tells whether the gateway drains.
        keyring: keys that requests must bear; without it anyone may ask.
        observers: see every request first.
    """
    checks = [Middleware(KeyCheck, keyring=keyring)] if keyring is not None else []
    app = Starlette(
        routes=routes,
        middleware=[*observers, Middleware(Manners, calls=calls), *checks],
        exception_handlers={HTTPException: _no_such_route},
    )
    app.router.redirect_slashes = False
    return app


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
        message = f"{request.method} {request.url.path}: use {headers['Allow']}"
    else:
        message = f"{request.method} {request.url.path}: there is no such path"
    return Response(error_body(status, message), status.value, headers, "application/json")
