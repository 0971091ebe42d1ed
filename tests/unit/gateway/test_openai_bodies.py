"""Does whatever JSON a caller sends become requests, or an error that says what is wrong with it?"""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler_service.gateway.exceptions import InvalidArgumentError, NotServedError
from scheduler_service.gateway.openai.bodies import ChatCompletionBody, CompletionBody
from scheduler_service.gateway.openai.conversion import to_requests
from scheduler_service.gateway.openai.parsing import NOT_SERVED, parse_body

NAMES = sorted({*CompletionBody.model_fields, *ChatCompletionBody.model_fields, *NOT_SERVED, "best_of", "other"})

numbers = st.integers(-2, 3) | st.sampled_from([0.5, -1.5, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**400, 1e300])
leaves = st.none() | st.booleans() | numbers | st.text(max_size=5)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
parts = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", 1]), "text": leaves}), max_size=2)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "robot", None, 1, []])
messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": leaves | parts}, optional={"name": leaves, "tool_calls": values}),
    max_size=2,
)
token_ids = st.lists(st.integers(-1, 2**32), max_size=3)
prompts = st.text(max_size=5) | token_ids | st.lists(st.text(max_size=3) | token_ids, max_size=3)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "prompt": prompts,
        "messages": messages,
        "logit_bias": st.dictionaries(st.sampled_from(["0", "7", "-1", "x", "²", str(2**32)]), numbers, max_size=2),
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=2),
        "stream": st.booleans(),
        "stream_options": st.dictionaries(st.sampled_from(["include_usage", "x"]), values, max_size=2),
    },
)


@settings(max_examples=200)
@given(bodies, st.dictionaries(st.sampled_from(NAMES), values, max_size=3))
@example({"messages": [{"role": "user", "content": "x"}]}, {"chat_template_kwargs": {"a": 10**400}})
@example({"prompt": "a"}, {"temperature": 10**400})
@example({"prompt": "a"}, {"best_of": [], "n": {}})
def test_any_body_is_served_or_refused(known: dict[str, Any], other: dict[str, Any]) -> None:
    data = json.dumps(other | known).encode()
    for kind in (CompletionBody, ChatCompletionBody):
        try:
            body = parse_body(kind, data)
            requests = to_requests(body, request_id="r", seed=1, is_resumed=False)
        except (InvalidArgumentError, NotServedError):
            continue
        assert len(requests) == (len(body.prompt) if isinstance(body, CompletionBody) else 1)


@settings(max_examples=500)
@given(st.binary(max_size=60))
def test_any_bytes_are_served_or_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_body(CompletionBody, data)
