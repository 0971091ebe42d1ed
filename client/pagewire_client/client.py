"""How does synchronous code talk to a service? `Client`, and the `Stream` its streaming call returns."""

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from pagewire.v1 import generate_pb2, inference_pb2
from pagewire_client import conversion, unary
from pagewire_client.access import Access, Tls
from pagewire_client.assembly import Assembly
from pagewire_client.channel import DEFAULT_ADDRESS, open_channel, pick_timeout
from pagewire_client.errors import RequestError, from_rpc_error
from pagewire_client.gateways import Gateways
from pagewire_client.params import RequestOptions, SamplingParams
from pagewire_client.prompts import Prompt
from pagewire_client.readiness import Readiness
from pagewire_client.retry import Attempts, RetryPolicy
from pagewire_client.types import Accepted, Chunk, Completion, Model, Progress, ServerInfo, Tokens


class Client:
    """A connection to one service. Safe to share between threads.

    Args:
        address: "HOST:PORT", "unix:/path" or any gRPC target; several, with commas between them, are gateways of one
            service, which take calls in turn.
        api_key: sent with every call; default: PAGEWIRE_API_KEY of the environment, if it is there.
        tls: settings of TLS; default: plaintext, unless the environment has PAGEWIRE_TLS=1, PAGEWIRE_TLS_CA, or
            PAGEWIRE_TLS_CERT and PAGEWIRE_TLS_KEY. Unix sockets are always plaintext.
        credentials: gRPC credentials in place of `tls`.
        timeout_s: deadline of calls that name none; None means no limit.
        retry: what to do when the service is UNAVAILABLE; streams are then resumed where they broke off.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        access = Access(api_key, tls, credentials)
        self._gateways = Gateways(
            address, lambda target: open_channel(target, access.credentials_for(target)), access.metadata
        )
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> Completion:
        """Run a prompt and wait for the whole answer.

        Raises:
            RequestError: the call failed; its subclass and fields say how.
        """
        return self.stream(prompt, params, **options).collect()

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> "Stream":
        """Run a prompt and iterate over its output as it is made. Close the stream to stop early."""
        request = conversion.generate_request(prompt, params, options)
        attempts = Attempts(self._retry, pick_timeout(options, self._timeout_s))
        return Stream(self._gateways.turns(), request, attempts)

    def tokenize(self, prompt: Prompt, *, model: str = "", add_special_tokens: bool | None = None) -> Tokens:
        """Token ids that `generate` would give the model for this text or chat."""
        return unary.tokens(self._call("Tokenize", unary.tokenize_request(prompt, model, add_special_tokens)))

    def detokenize(self, token_ids: Sequence[int], *, model: str = "", skip_special_tokens: bool | None = None) -> str:
        """Text of token ids."""
        request = inference_pb2.DetokenizeRequest(
            model=model, token_ids=token_ids, skip_special_tokens=skip_special_tokens
        )
        response: inference_pb2.DetokenizeResponse = self._call("Detokenize", request)
        return response.text

    def list_models(self) -> list[Model]:
        """Served models; the first is the default."""
        response = self._call("ListModels", inference_pb2.ListModelsRequest())
        return [conversion.model(model) for model in response.models]

    def server_info(self) -> ServerInfo:
        """State and limits of the service."""
        return conversion.server_info(self._call("GetServerInfo", inference_pb2.GetServerInfoRequest()))

    def wait_until_ready(
        self, timeout_s: float | None = None, on_progress: Callable[[Progress], None] | None = None
    ) -> ServerInfo:
        """Wait until the engine can run requests, reporting how far its start is.

        Raises:
            UnavailableError: it was not ready in time; the message says what it was doing.
        """
        readiness = Readiness(timeout_s, on_progress)
        request = inference_pb2.GetServerInfoRequest()
        for stub in self._gateways.turns():
            try:
                info = conversion.server_info(stub.GetServerInfo(request, timeout=readiness.call_timeout_s))
            except grpc.RpcError as error:
                readiness.failed(from_rpc_error(error))
            else:
                if readiness.is_ready(info):
                    return info
            time.sleep(readiness.wait_s())
        raise AssertionError("there is always another turn")

    def close(self) -> None:
        """Close the connection; open streams end with CANCELLED."""
        for channel in self._gateways.channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, request: object) -> Any:
        attempts = Attempts(self._retry, self._timeout_s)
        for stub in self._gateways.turns():
            try:
                return getattr(stub, method)(request, timeout=attempts.remaining_s())
            except grpc.RpcError as error:
                time.sleep(attempts.wait_after(from_rpc_error(error)))
        raise AssertionError("there is always another turn")


class Stream(Iterator[Chunk]):
    """The output of one request, in order, over as many calls as it takes. Also a context manager that closes itself.

    `completion` is set once the stream has ended; `accepted` once the server took the request.
    """

    def __init__(self, stubs: Iterator[Any], request: generate_pb2.GenerateRequest, attempts: Attempts) -> None:
        self._stubs = stubs
        self._request = request
        self._attempts = attempts
        self._call = self._open(request)
        self._assembly = Assembly()
        self._closed = False

    @property
    def accepted(self) -> Accepted | None:
        """The server's first word, once it has come."""
        return self._assembly.accepted

    @property
    def completion(self) -> Completion | None:
        """The whole answer, once it has come."""
        return self._assembly.completion

    def __next__(self) -> Chunk:
        while not self._closed:
            try:
                event: generate_pb2.GenerateResponse = next(self._call)
            except StopIteration:
                self._finish()
            except grpc.RpcError as error:
                self._retry(error)
            else:
                chunk = self._assembly.add(event)
                if chunk is not None:
                    self._attempts.made_progress()
                    return chunk
        raise StopIteration

    def collect(self) -> Completion:
        """Read to the end and return the whole answer.

        Raises:
            RequestError: the call failed, or the stream was closed before its end.
        """
        for _ in self:
            pass
        if self.completion is None:
            raise self._assembly.cut_off()
        return self.completion

    def close(self) -> None:
        """Stop the request, if it still runs; the server frees what it held. Iteration ends."""
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finish(self) -> None:
        self._closed = True
        if self.completion is None:
            raise self._assembly.cut_off()

    def _retry(self, error: grpc.RpcError) -> None:
        """Go on with the stream after the output that has come, or raise the error."""
        if self._closed:
            return
        failure = from_rpc_error(error)
        request = self._assembly.continuing(self._request)
        try:
            if request is None:
                raise failure from None
            time.sleep(self._attempts.wait_after(failure, resumes=request.HasField("resume")))
        except RequestError:
            self._closed = True
            raise
        if not self._closed:
            self._call = self._open(request)

    def _open(self, request: generate_pb2.GenerateRequest) -> Any:
        return next(self._stubs).Generate(request, timeout=self._attempts.remaining_s())
