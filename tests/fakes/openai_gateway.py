"""A gateway that serves HTTP, raw requests to it, and events as they stand on the wire."""

import http.client
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tests.fakes.fake_scheduler import FakeScheduler
from tests.fakes.gateway_process import GatewayProcess
from tests.fakes.patience import PATIENCE_S
from tests.fakes.tiny_model import write_tiny_model

JSON_HEADERS = {"Content-Type": "application/json"}


@contextmanager
def http_gateway(
    scheduler: FakeScheduler, folder: Path, *flags: str, credentials: grpc.ChannelCredentials | None = None
) -> Iterator[tuple[GatewayProcess, int]]:
    """The process of a gateway over the tiny model, ready to serve, and its HTTP port."""
    folder.mkdir(parents=True, exist_ok=True)
    model = write_tiny_model(folder / "model")
    flags = ("--http", "127.0.0.1:0", *flags)
    with GatewayProcess(model, scheduler.address, folder / "log", *flags, credentials=credentials) as process:
        process.wait_until_serving()
        yield process, process.http_port()


@dataclass
class Events:
    """What came of a stream of events."""

    raw: bytes = b""
    ids: list[str] = field(default_factory=list)
    data: list[Any] = field(default_factory=list)
    is_done: bool = False

    @property
    def text(self) -> str:
        """The text of choice 0."""
        choices = [choice for chunk in self.data for choice in chunk.get("choices", ()) if choice["index"] == 0]
        return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


class RawStream:
    """A POST that is answered by events, read from the wire one by one."""

    def __init__(self, port: int, path: str, body: dict[str, Any], last_event_id: str = "") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        headers = {**JSON_HEADERS, **({"Last-Event-ID": last_event_id} if last_event_id else {})}
        self.response = self._post(path, body, headers)
        # The engine, or the gateway, has not come back yet: as OpenAI's clients do, ask again.
        while self.response.status == 503:
            self.response.read()
            self.response = self._post(path, body, headers)
        assert self.response.status == 200, self.response.read()
        assert self.response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        self.events = Events()

    def _post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> http.client.HTTPResponse:
        self.connection.request("POST", path, json.dumps(body), headers)
        return self.connection.getresponse()

    def read(self, num_events: int | None = None) -> Events:
        """So many events more, or all there are; comments do not count."""
        while num_events is None or num_events > 0:
            event = b""
            while not event.endswith(b"\n\n"):
                line = self.response.readline()
                if not line:
                    self.connection.close()
                    return self.events
                event += line
            self._take(event)
            num_events = None if num_events is None else num_events - 1
        return self.events

    def _take(self, event: bytes) -> None:
        found = re.fullmatch(rb"(?:id: (?P<id>[^\n]*)\n)?data: (?P<data>[^\n]*)\n\n", event)
        assert found is not None, event
        self.events.raw += event
        if found["data"] == b"[DONE]":
            self.events.is_done = True
            return
        self.events.ids.append((found["id"] or b"").decode())
        self.events.data.append(json.loads(found["data"]))


def post(
    port: int, path: str, body: object, headers: dict[str, str] | None = None, method: str = "POST"
) -> tuple[int, Any]:
    """Status and JSON of an answer; `body` may be bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, JSON_HEADERS if headers is None else headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content)
