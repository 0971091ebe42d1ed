"""What could a protobuf message of a type hold? Any value that the wire can carry, likely ones and extremes."""

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_MAX_DEPTH = 6
_JSON = ('{"\\ud800": 1}', '{"stop": "\\ud800"}', '{"max_tokens": 1e999}', '{"seed": NaN}', "[" * 2000)
_TEXTS = (
    "",
    "a",
    "tiny",
    "hello world",
    "\0",
    "\r\n\r\n",
    "é中\U0001f600",
    "\u202e\ufeff",
    "%s%n{0}{{x}}",
    "../" * 9,
    *_JSON,
)
_KINDS_OF_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_LIKELY_NUMBERS = (0, 1, 2, 5, 40, 267, 268, 511, 512)
_SMALL_FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 1e-300)
_FLOATS = (*_SMALL_FLOATS, float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, 3.4e38)


def fill(message: Message, choice: random.Random, depth: int = 0) -> None:
    """Set each field to anything, or leave it: all members of a oneof too, of which the last stays."""
    fields = list(message.DESCRIPTOR.fields)
    # A message with every field set fails at the first wrong one, and one with few gets further.
    share = choice.choice((0.1, 0.3, 0.9))
    for field in choice.sample(fields, len(fields)):
        if choice.random() < share:
            set_field(message, field, choice, depth)


def change(message: Message, choice: random.Random, num_changes: int) -> None:
    """Set so many fields, anywhere within it, to anything."""
    for _ in range(num_changes):
        place = choice.choice(list(_messages_within(message)))
        if place.DESCRIPTOR.fields:
            set_field(place, choice.choice(place.DESCRIPTOR.fields), choice, depth=2)


def set_field(message: Message, field: FieldDescriptor, choice: random.Random, depth: int) -> None:
    """Set one field to anything that it can hold."""
    if not field.is_repeated:
        if field.message_type is None:
            setattr(message, field.name, _scalar(field, choice))
        elif depth < _MAX_DEPTH:
            inner = getattr(message, field.name)
            inner.SetInParent()
            fill(inner, choice, depth + 1)
        return
    held: Any = getattr(message, field.name)
    if field.message_type is None:
        length = choice.choice((0, 1, 2, 3, 20, 300))
        message.ClearField(field.name)
        held.extend(_scalar(field, choice) for _ in range(length))
    elif field.message_type.GetOptions().map_entry:
        _fill_map(held, field.message_type, choice, depth)
    elif depth < _MAX_DEPTH:
        for _ in range(choice.choice((1, 2, 5))):
            fill(held.add(), choice, depth + 1)


def _fill_map(held: Any, entry: Descriptor, choice: random.Random, depth: int) -> None:
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    for _ in range(choice.choice((1, 2, 40)) if value.message_type is None else 1):
        chosen = _scalar(key, choice)
        if value.message_type is None:
            held[chosen] = _scalar(value, choice)
        elif depth < _MAX_DEPTH:
            fill(held[chosen], choice, depth + 1)


def _messages_within(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if not field.is_repeated:
            yield from _messages_within(value)
        elif not field.message_type.GetOptions().map_entry:
            for inner in value:
                yield from _messages_within(inner)


def _scalar(field: FieldDescriptor, choice: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return choice.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return choice.choice(_FLOATS if choice.random() < 0.5 else _SMALL_FLOATS)
        case FieldDescriptor.CPPTYPE_STRING:
            text = random_text(choice)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_ENUM if choice.random() < 0.7:
            return choice.choice(field.enum_type.values).number
        case kind:
            lowest, highest = _KINDS_OF_INTEGERS[kind]
            likely = (0, 1, 2, 5, 40, 267, 268, 511, 512)
            return choice.choice(
                likely if choice.random() < 0.7 else (lowest, highest, choice.randint(lowest, highest))
            )


def random_text(choice: random.Random) -> str:
    """Short texts, mostly; sometimes long ones."""
    if choice.random() < 0.6:
        return choice.choice(_TEXTS)
    letters = choice.choice(("ab ", "\0\x7f\t\n", "é中\U0001f600\u0301", "{%}'\"<|turn|>"))
    text = "".join(choice.choices(letters, k=choice.choice((1, 10, 64, 65, 1500))))
    return text * (40 if choice.random() < 0.02 else 1)
