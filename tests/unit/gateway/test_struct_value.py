"""Do Structs become the JSON data that they were made of?"""

import json
from typing import Any

from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.gateway.struct_value import struct_to_dict

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=5))
def test_struct_to_dict_gives_the_same_values(data: dict[str, Any]) -> None:
    struct = struct_pb2.Struct()
    struct.update(data)
    assert struct_to_dict(struct) == data


def test_struct_to_dict_writes_whole_numbers_as_such() -> None:
    struct = struct_pb2.Struct()
    struct.update({"n": 3, "x": 0.5})
    assert json.dumps(struct_to_dict(struct)) == '{"n": 3, "x": 0.5}'


def test_struct_to_dict_orders_tool_schemas_by_convention() -> None:
    struct = struct_pb2.Struct()
    parameters: dict[str, Any] = {"required": ["b"], "properties": {"b": {}, "a": {}}, "type": "object"}
    function: dict[str, Any] = {"parameters": parameters, "name": "f"}
    struct.update({"function": function, "strict": True, "type": "function"})
    assert json.dumps(struct_to_dict(struct)) == (
        '{"type": "function", "function": {"name": "f", "parameters": '
        '{"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]}}, "strict": true}'
    )
