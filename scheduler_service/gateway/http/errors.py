"""What does an HTTP caller get for an exception? OpenAI's error object, with a status code."""

import json
from http import HTTPStatus


def error_body(status: HTTPStatus, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """The body of an answer that says what went wrong."""
    kind = _TYPES.get(status, "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}, ensure_ascii=False).encode()


# Of OpenAI's API; every other status below 500 is an invalid_request_error.
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
