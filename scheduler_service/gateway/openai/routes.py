"""Which paths of OpenAI's API are answered, and what happens on each?"""

import re
import secrets
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler_service.gateway.exceptions import InvalidArgumentError, RequestError
from scheduler_service.gateway.gateway import Gateway
from scheduler_service.gateway.http.body import BodyReader
from scheduler_service.gateway.http.connected import CallerGoneError, run_while_connected
from scheduler_service.gateway.http.errors import HttpError, error_event, error_response, note_unexpected
from scheduler_service.gateway.http.event_stream import EventStream
from scheduler_service.gateway.openai.answers import StreamedAnswer, Task, answer_whole
from scheduler_service.gateway.openai.bodies import ChatCompletionBody, CompletionBody
from scheduler_service.gateway.openai.conversion import read_prompt, to_requests
from scheduler_service.gateway.openai.parameters import in_callers_terms
from scheduler_service.gateway.openai.parsing import parse_body
from scheduler_service.gateway.openai.position import ChoicePosition, Position, parse_event_id
from scheduler_service.gateway.openai.shapes import ChatShape, CompletionShape, Shape

Handler = Callable[[Request], Awaitable[ASGIApp]]

_SEED_BITS = 63
# With a prompt's number behind it, it is still an id.
_CALLERS_ID = re.compile(r"[A-Za-z0-9._-]{1,58}")


class OpenAiApi:
    """The API over one model.

    Args:
        gateway: what answers are made of.
        bodies: reads requests.
    """

    def __init__(self, gateway: Gateway, bodies: BodyReader) -> None:
        self._gateway = gateway
        self._bodies = bodies
        self._created_s = int(time.time())

    def routes(self) -> list[Route]:
        """All paths. Each goes through `_answered`."""
        return [
            Route("/v1/models", _answered(self._list_models)),
            Route("/v1/models/{name:path}", _answered(self._get_model)),
            Route("/v1/completions", _answered(self._complete), methods=["POST"]),
            Route("/v1/chat/completions", _answered(self._chat), methods=["POST"]),
            Route("/v1/embeddings", _answered(self._embed), methods=["POST"]),
        ]

    async def _list_models(self, _request: Request) -> ASGIApp:
        return JSONResponse({"object": "list", "data": [self._describe_model()]})

    async def _get_model(self, request: Request) -> ASGIApp:
        self._gateway.model.check_name(request.path_params["name"])
        return JSONResponse(self._describe_model())

    def _describe_model(self) -> dict[str, object]:
        model = {"id": self._gateway.model.name, "object": "model", "created": self._created_s, "owned_by": "pagewire"}
        return {**model, "root": self._gateway.model.name, "parent": None, "max_model_len": self._gateway.max_model_len}

    async def _embed(self, _request: Request) -> ASGIApp:
        raise HttpError(HTTPStatus.BAD_REQUEST, "embeddings are not served yet")

    async def _complete(self, request: Request) -> ASGIApp:
        body = parse_body(CompletionBody, await self._bodies.read_json(request))
        shape = CompletionShape(body, self._gateway.model.name, self._gateway.model.tokenizer)
        return await self._answer(request, body, shape)

    async def _chat(self, request: Request) -> ASGIApp:
        body = parse_body(ChatCompletionBody, await self._bodies.read_json(request))
        shape = ChatShape(body, self._gateway.model.name, self._gateway.model.tokenizer)
        return await self._answer(request, body, shape)

    async def _answer(self, request: Request, body: CompletionBody | ChatCompletionBody, shape: Shape) -> ASGIApp:
        self._gateway.model.check_name(body.model)
        try:
            task = await self._to_task(request, body)
            if body.stream:
                return self._stream(task, body, shape)
            answer = await run_while_connected(request.receive, answer_whole(task, self._gateway.generator, shape))
        except RequestError as error:
            raise in_callers_terms(error, is_chat=isinstance(body, ChatCompletionBody)) from error
        return Response(answer, headers=_headers(task), media_type="application/json")

    def _stream(self, task: Task, body: CompletionBody | ChatCompletionBody, shape: Shape) -> ASGIApp:
        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            events = EventStream(send, _headers(task))
            answer = StreamedAnswer(task, self._gateway.generator, shape, events, body)
            try:
                await run_while_connected(receive, answer.run())
            except CallerGoneError:
                return
            except Exception as error:
                note_unexpected(error)
                told = in_callers_terms(error, is_chat=isinstance(body, ChatCompletionBody))
                if not events.has_begun:
                    await error_response(told)(scope, receive, send)
                    return
                await events.send(error_event(told))
                await events.end()

        return respond

    async def _to_task(self, request: Request, body: CompletionBody | ChatCompletionBody) -> Task:
        num_prompts = len(body.prompt) if isinstance(body, CompletionBody) else 1
        num_choices = num_prompts * body.n
        last_event_id = request.headers.get("last-event-id", "")
        if last_event_id:
            if not body.stream:
                raise InvalidArgumentError("Last-Event-ID", "is for streams: set stream, or leave it out")
            position = parse_event_id(last_event_id, num_choices)
        else:
            seed = secrets.randbits(_SEED_BITS) if body.seed is None else body.seed % 2**64
            choices = [ChoicePosition() for _ in range(num_choices)]
            position = Position(_request_id(request), seed, int(time.time()), choices)
        requests = to_requests(body, request_id=position.request_id, seed=position.seed, is_resumed=bool(last_event_id))
        prompts = [await read_prompt(one, self._gateway.prompts) for one in requests] if body.return_token_ids else []
        return Task(requests, body.n, prompts, position)


def _request_id(request: Request) -> str:
    """The caller's own, if it can be one here."""
    own = request.headers.get("x-request-id", "")
    return own if _CALLERS_ID.fullmatch(own) else secrets.token_hex(16)


def _headers(task: Task) -> dict[str, str]:
    return {"x-request-id": task.position.request_id}


def _answered(handle: Handler) -> Callable[[Request], Awaitable[ASGIApp]]:
    """Around every call of the API: exceptions become answers."""

    async def answer(request: Request) -> ASGIApp:
        try:
            return await handle(request)
        except (ClientDisconnect, CallerGoneError):
            return _nothing
        except Exception as error:
            note_unexpected(error)
            return error_response(error)

    return answer


async def _nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Nobody is there to answer."""
