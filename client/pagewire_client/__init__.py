"""Client of Pagewire: sync and async gRPC clients, a local engine, and the command line."""

from pagewire_client.access import Tls
from pagewire_client.aio import AsyncClient, AsyncStream
from pagewire_client.client import Client, Stream
from pagewire_client.errors import (
    AuthenticationError,
    CancelledError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PagewireError,
    RequestError,
    ResourceExhaustedError,
    ServiceStartError,
    UnavailableError,
    UnimplementedError,
)
from pagewire_client.llm import LLM
from pagewire_client.local_service import LocalService
from pagewire_client.outputs import CompletionOutput, RequestOutput
from pagewire_client.params import RequestOptions, RequestOutputKind, Resume, SamplingParams, StructuredOutputs
from pagewire_client.prompts import Chat, ChatMessage, Prompt
from pagewire_client.retry import NO_RETRY, RetryPolicy
from pagewire_client.types import Accepted, Choice, Chunk, Completion, FinishReason, Model, ServerInfo, Tokens, Usage

__all__ = [
    "LLM",
    "NO_RETRY",
    "Accepted",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "CancelledError",
    "Chat",
    "ChatMessage",
    "Choice",
    "Chunk",
    "Client",
    "Completion",
    "CompletionOutput",
    "DeadlineExceededError",
    "FinishReason",
    "InternalError",
    "InvalidArgumentError",
    "LocalService",
    "Model",
    "NotFoundError",
    "PagewireError",
    "Prompt",
    "RequestError",
    "RequestOptions",
    "RequestOutput",
    "RequestOutputKind",
    "ResourceExhaustedError",
    "Resume",
    "RetryPolicy",
    "SamplingParams",
    "ServerInfo",
    "ServiceStartError",
    "Stream",
    "StructuredOutputs",
    "Tls",
    "Tokens",
    "UnavailableError",
    "UnimplementedError",
    "Usage",
]
