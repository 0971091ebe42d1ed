"""How does a protobuf Struct become plain JSON data that chat templates can render?"""

from typing import Any

from google.protobuf import struct_pb2

# A Struct forgets the order of its keys, but models were trained on tool schemas in this one.
_CONVENTIONAL_KEYS = (
    "type",
    "function",
    "name",
    "description",
    "parameters",
    "arguments",
    "properties",
    "required",
)
_RANKS = {key: rank for rank, key in enumerate(_CONVENTIONAL_KEYS)}


def struct_to_dict(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Convert a Struct: conventional keys first, the others by name; whole numbers become int."""
    return {key: _value(struct.fields[key]) for key in sorted(struct.fields, key=_order)}


def _order(key: str) -> tuple[int, str]:
    return _RANKS.get(key, len(_RANKS)), key


def _value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return struct_to_dict(value.struct_value)
        case "list_value":
            return [_value(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None
