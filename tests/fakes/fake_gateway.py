"""A gateway without a model: answers the public API with made-up tokens, as an object in a test or as a process.

As a process it takes the real gateway's flags and prints the same listening lines.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf import any_pb2
from google.rpc import status_pb2

from pagewire.v1 import generate_pb2, inference_pb2, inference_pb2_grpc
from tests.fakes.patience import PATIENCE_S

_REFUSED = generate_pb2.ChatMessage(role="user", content="refuse")

Handler = Callable[[generate_pb2.GenerateRequest, grpc.ServicerContext, int], Iterator[generate_pb2.GenerateResponse]]


class FakeService(inference_pb2_grpc.InferenceServiceServicer):
    """Counts what it is asked; `handler` replaces the answer to Generate and gets the number of the call, from 1."""

    def __init__(self, handler: Handler | None = None, num_starting_answers: int = 0) -> None:
        self.handler = handler or answer
        self.num_starting_answers = num_starting_answers
        self.requests: list[generate_pb2.GenerateRequest] = []
        self.num_info_calls = 0
        self.num_open = 0
        self.closed = threading.Semaphore(0)
        self._lock = threading.Lock()

    def Generate(self, request, context):
        with self._lock:
            self.requests.append(request)
            call = len(self.requests)
            self.num_open += 1
        context.add_callback(self._count_closed)
        yield from self.handler(request, context, call)

    def Tokenize(self, request, context):
        text = request.text or "".join(f"{m.role}:{m.content}\n" for m in request.chat.messages)
        return inference_pb2.TokenizeResponse(token_ids=text.encode(), max_model_len=2048)

    def Detokenize(self, request, context):
        return inference_pb2.DetokenizeResponse(text=bytes(request.token_ids).decode())

    def ListModels(self, request, context):
        model = inference_pb2.Model(
            name="fake", architecture="llama", max_model_len=2048, vocab_size=256, has_chat_template=True
        )
        return inference_pb2.ListModelsResponse(models=[model])

    def GetServerInfo(self, request, context):
        with self._lock:
            self.num_info_calls += 1
            starting = self.num_info_calls <= self.num_starting_answers
        return inference_pb2.GetServerInfoResponse(
            version="0",
            gateway_incarnation="g1",
            engine_state=inference_pb2.ENGINE_STATE_STARTING if starting else inference_pb2.ENGINE_STATE_READY,
            progress=inference_pb2.EngineProgress(
                stage="loading weights", done=self.num_info_calls, total=self.num_starting_answers
            ),
            limits=inference_pb2.ServerLimits(max_model_len=2048, max_num_seqs=8),
        )

    def _count_closed(self) -> None:
        with self._lock:
            self.num_open -= 1
        self.closed.release()


def answer(
    request: generate_pb2.GenerateRequest, context: grpc.ServicerContext, call: int
) -> Iterator[generate_pb2.GenerateResponse]:
    """The default handler: max_tokens (default 3) tokens "t0 t1 t2 ".

    999 tokens, the token 0xBAD and the chat "refuse" are refused.
    """
    num_tokens = request.stopping.max_tokens or 3
    if num_tokens == 999 or 0xBAD in request.token_ids.ids or request.chat.messages[-1:] == [_REFUSED]:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "max_tokens is over the limit")
    yield accepted(request, call)
    for position in range(num_tokens):
        yield delta([position], f"t{position} ")
    yield finished(num_tokens, num_prompt_tokens(request))


def accepted(request: generate_pb2.GenerateRequest, call: int = 1) -> generate_pb2.GenerateResponse:
    """First event; the request id tells which call it was."""
    return generate_pb2.GenerateResponse(
        accepted=generate_pb2.Accepted(
            request_id=request.request_id or f"fake-{call}",
            seed=request.sampling.seed or 7,
            num_prompt_tokens=num_prompt_tokens(request),
            model="fake",
        )
    )


def delta(token_ids: list[int], text: str) -> generate_pb2.GenerateResponse:
    """Some output."""
    return generate_pb2.GenerateResponse(delta=generate_pb2.Delta(token_ids=token_ids, text=text))


def finished(num_tokens: int, num_prompt: int = 1) -> generate_pb2.GenerateResponse:
    """Last event."""
    usage = generate_pb2.Usage(num_prompt_tokens=num_prompt, num_output_tokens=num_tokens)
    return generate_pb2.GenerateResponse(
        finished=generate_pb2.Finished(reason=generate_pb2.FINISH_REASON_LENGTH, usage=usage)
    )


def num_prompt_tokens(request: generate_pb2.GenerateRequest) -> int:
    """Length of the prompt in the fake's tokens."""
    return len(request.token_ids.ids) or len(request.text) or len(request.chat.messages)


def abort_with_details(context: grpc.ServicerContext, code: grpc.StatusCode, message: str, *details) -> None:
    """End the call with google.rpc details, as the real gateway does."""
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
    context.abort(code, message)


def wait_until_cancelled(context: grpc.ServicerContext, limit_s: float = PATIENCE_S) -> None:
    """Hold a stream open until its caller is gone."""
    deadline = time.monotonic() + limit_s
    while context.is_active() and time.monotonic() < deadline:
        time.sleep(0.01)


class FakeGateway:
    """A FakeService behind a real socket."""

    def __init__(self, service: FakeService, listen: tuple[str, ...] = ("127.0.0.1:0",)) -> None:
        self.service = service
        self._server = grpc.server(ThreadPoolExecutor(max_workers=64), options=[("grpc.so_reuseport", 0)])
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, self._server)
        self.addresses = [self._bind(address) for address in listen]
        self._server.start()

    @property
    def address(self) -> str:
        """The first address."""
        return self.addresses[0]

    def stop(self) -> None:
        """Close the port and cut every open stream."""
        self._server.stop(None).wait()

    def __enter__(self) -> "FakeGateway":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _bind(self, address: str) -> str:
        port = self._server.add_insecure_port(address)
        return address if address.startswith("unix:") else f"{address.rsplit(':', 1)[0]}:{port}"


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", action="append", default=[])
    parser.add_argument("--num-starting-answers", type=int, default=0)
    options, _ = parser.parse_known_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        gateway = FakeGateway(FakeService(num_starting_answers=options.num_starting_answers), tuple(options.listen))
    except RuntimeError as error:
        sys.exit(f"fake gateway: cannot listen: {error}")
    for address in gateway.addresses:
        print(f"gateway listening address={address}", flush=True)
    # A signal may come to one of gRPC's threads; this one has to wake to learn of it.
    while not stop.wait(0.1):
        pass
    gateway.stop()


if __name__ == "__main__":
    main()
