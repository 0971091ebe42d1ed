"""How does a conversation become one prompt text? Renders the model's chat template in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Marks where the last message's text ends. The space tells whether the template trims messages.
_END_MARK = "\x00end-of-final-message\x00 "


class ChatTemplateError(Exception):
    """The template cannot be compiled, or refuses the conversation; the message is the template's own."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja text.
        special_tokens: variables such as bos_token that every template sees.
    Raises:
        ChatTemplateError: the source is not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"line {error.lineno}: {error.message}") from error
        self.source = source
        self._special_tokens = dict(special_tokens)

    @property
    def reserved_names(self) -> frozenset[str]:
        """Variables that callers cannot set."""
        return frozenset({"messages", "tools", "add_generation_prompt", *self._special_tokens})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render a conversation.

        Raises:
            ChatTemplateError: the template raised an error for this conversation.
        """
        turns = [dict(message) for message in messages]
        if continue_final_message:
            turns[-1]["content"] += _END_MARK
        try:
            text = self._template.render(
                {
                    "documents": None,
                    **(variables or {}),
                    **self._special_tokens,
                    "messages": turns,
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt and not continue_final_message,
                }
            )
        except Exception as error:
            # A template is a program: whatever it raises is about this conversation.
            raise ChatTemplateError(str(error) or type(error).__name__) from error
        return _cut_at_end_mark(text) if continue_final_message else text


def _cut_at_end_mark(text: str) -> str:
    before, mark, after = text.rpartition(_END_MARK.rstrip(" "))
    if not mark:
        raise ChatTemplateError("the template leaves the last message out, so it cannot be continued")
    keeps_spaces = after.startswith(" ")
    return before if keeps_spaces else before.rstrip()


def _environment() -> ImmutableSandboxedEnvironment:
    """The names that published chat templates rely on."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON for a language model: unlike jinja2's own filter it escapes neither HTML nor non-ASCII characters."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
