"""What may a prompt be? Text, token ids, or a conversation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from google.protobuf import struct_pb2

from pagewire.v1 import generate_pb2
from pagewire_client.checks import check_text, check_token_ids


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation; role is "system", "user", "assistant", "tool" or what the template knows."""

    role: str
    content: str = ""
    name: str = ""
    tool_call_id: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()


Message: TypeAlias = ChatMessage | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation with the chat template's options, for when a plain list of messages is not enough."""

    messages: Sequence[Message]
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    template_args: Mapping[str, Any] | None = None
    template: str = ""


Prompt: TypeAlias = str | Sequence[int] | Sequence[Message] | Chat


def as_proto(prompt: Prompt) -> str | generate_pb2.TokenIds | generate_pb2.Chat:
    """Turn a prompt into the member of the `prompt` oneof that carries it.

    Raises:
        TypeError: it is none of the kinds of prompt.
        ValueError: a token id is negative or too large, text is not valid, or a message has an unknown key.
    """
    if isinstance(prompt, str):
        check_text(prompt, "prompt")
        return prompt
    if isinstance(prompt, Chat):
        return _chat(prompt)
    if isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)):
        if not prompt or isinstance(prompt[0], int):
            return _token_ids(prompt)
        if isinstance(prompt[0], (ChatMessage, Mapping)):
            return _chat(Chat(cast(Sequence[Message], prompt)))
    raise TypeError(f"a prompt is text, token ids or chat messages, not {type(prompt).__name__}")


def _token_ids(ids: Sequence[object]) -> generate_pb2.TokenIds:
    try:
        return generate_pb2.TokenIds(ids=cast(Sequence[int], ids))
    except (TypeError, ValueError):
        check_token_ids(ids, "prompt")
        raise


def _chat(chat: Chat) -> generate_pb2.Chat:
    proto = generate_pb2.Chat(
        messages=[_message(message) for message in chat.messages],
        add_generation_prompt=chat.add_generation_prompt,
        continue_final_message=chat.continue_final_message,
        tools=[_struct(tool) for tool in chat.tools],
        template=chat.template,
    )
    if chat.template_args is not None:
        proto.template_args.CopyFrom(_struct(chat.template_args))
    return proto


def _message(message: Message) -> generate_pb2.ChatMessage:
    if isinstance(message, Mapping):
        try:
            message = ChatMessage(**message)
        except TypeError as error:
            raise ValueError(f"not a chat message: {error}") from error
    for name in ("role", "content", "name", "tool_call_id"):
        check_text(getattr(message, name), f"{name} of a chat message")
    return generate_pb2.ChatMessage(
        role=message.role,
        content=message.content,
        name=message.name,
        tool_call_id=message.tool_call_id,
        tool_calls=[_struct(call) for call in message.tool_calls],
    )


def _struct(value: Mapping[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(dict(value))
    return struct
