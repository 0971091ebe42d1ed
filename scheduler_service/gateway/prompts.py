"""Which token ids does a prompt have, and which text do ids have? Works off the event loop where it takes long."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToJson

from pagewire.v1 import generate_pb2
from scheduler_service.gateway.chat_template import ChatTemplate, ChatTemplateError
from scheduler_service.gateway.exceptions import InvalidArgumentError, NoChatTemplateError, TemplateRefusedError
from scheduler_service.gateway.served_model import ServedModel
from scheduler_service.gateway.struct_value import struct_to_dict

Result = TypeVar("Result")

# Tokenizing this many characters takes about 2 ms.
_MAX_INLINE_SIZE = 4096
_MAX_LOGGED_CHARS = 4000


class PromptReader:
    """Turns text and chats into token ids, and ids into text.

    Args:
        model: its tokenizer and chat template.
        executor: runs what takes long.
        trusts_request_templates: whether a caller's chat template is run. A template is a program without a time limit.
    """

    def __init__(self, model: ServedModel, executor: Executor, *, trusts_request_templates: bool) -> None:
        self._model = model
        self._executor = executor
        self._trusts_request_templates = trusts_request_templates

    async def read_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokenize plain text."""
        return await self._run(len(text), lambda: self._encode(text, add_special_tokens))

    async def read_chat(self, chat: generate_pb2.Chat) -> list[int]:
        """Render a chat and tokenize it; the template writes all special tokens.

        Raises:
            InvalidArgumentError: the template refuses the chat.
            NoChatTemplateError: the model has none.
            TemplateRefusedError: the chat brings a template that is not trusted.
        """
        template = self._template(chat)
        _check_chat(chat, template)
        return await self._run(chat.ByteSize(), lambda: self._encode(_render(template, chat), False))

    async def read_token_ids(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Turn token ids back into text."""
        decode = self._model.tokenizer.decode
        return await self._run(len(token_ids), lambda: decode(token_ids, skip_special_tokens=skip_special_tokens))

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._model.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def _run(self, size: int, work: Callable[[], Result]) -> Result:
        if size <= _MAX_INLINE_SIZE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _template(self, chat: generate_pb2.Chat) -> ChatTemplate:
        if not chat.template:
            if self._model.chat_template is None:
                raise NoChatTemplateError
            return self._model.chat_template
        if not self._trusts_request_templates:
            raise TemplateRefusedError
        try:
            return ChatTemplate(chat.template, self._model.tokenizer.special_tokens)
        except ChatTemplateError as error:
            raise InvalidArgumentError("chat.template", str(error)) from error


def _check_chat(chat: generate_pb2.Chat, template: ChatTemplate) -> None:
    if not chat.messages:
        raise InvalidArgumentError("chat.messages", "is empty, must have at least one message")
    for index, message in enumerate(chat.messages):
        if not message.role:
            raise InvalidArgumentError(f"chat.messages[{index}].role", "is missing")
    if chat.continue_final_message and chat.HasField("add_generation_prompt") and chat.add_generation_prompt:
        raise InvalidArgumentError("chat.add_generation_prompt", "excludes chat.continue_final_message: leave one out")
    for name in template.reserved_names & chat.template_args.fields.keys():
        raise InvalidArgumentError(f"chat.template_args.{name}", "is set by the server: choose another name")


def describe_prompt(request: generate_pb2.GenerateRequest) -> str:
    """A request's prompt in one line, for a log; of a long one the beginning."""
    match request.WhichOneof("prompt"):
        case "text":
            prompt = repr(request.text[:_MAX_LOGGED_CHARS])
        case "chat":
            prompt = MessageToJson(request.chat, indent=None)
        case _:
            prompt = str(list(request.token_ids.ids))
    return prompt[:_MAX_LOGGED_CHARS]


def _render(template: ChatTemplate, chat: generate_pb2.Chat) -> str:
    try:
        return template.render(
            [_message(message) for message in chat.messages],
            tools=[struct_to_dict(tool) for tool in chat.tools] or None,
            add_generation_prompt=chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
            continue_final_message=chat.continue_final_message,
            variables=struct_to_dict(chat.template_args),
        )
    except ChatTemplateError as error:
        raise InvalidArgumentError("chat", f"the chat template refuses it: {error}") from error


def _message(message: generate_pb2.ChatMessage) -> dict[str, Any]:
    """A message as templates expect it: optional keys only where they are set."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [struct_to_dict(call) for call in message.tool_calls]
    return turn
