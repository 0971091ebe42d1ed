"""Do parameters and prompts become the right request, and are impossible values refused here?"""

import pytest
from google.protobuf import descriptor

from pagewire.v1 import generate_pb2
from pagewire_client import conversion
from pagewire_client.params import RequestOutputKind, Resume, SamplingParams, StructuredOutputs
from pagewire_client.prompts import Chat, ChatMessage, as_proto

FULL = SamplingParams(
    temperature=0.0,
    top_k=5,
    top_p=0.5,
    min_p=0.1,
    seed=3,
    n=2,
    presence_penalty=0.25,
    frequency_penalty=-0.25,
    repetition_penalty=1.5,
    logit_bias={7: 1.5},
    allowed_token_ids=[1, 2],
    bad_words=["no"],
    banned_token_ids=[8],
    max_tokens=9,
    min_tokens=1,
    stop=["END", "STOP"],
    stop_token_ids=[4],
    ignore_eos=True,
    include_stop_str_in_output=True,
    logprobs=0,
    prompt_logprobs=2,
    skip_special_tokens=False,
    detokenize=False,
    output_kind=RequestOutputKind.FINAL_ONLY,
    echo=True,
    structured_outputs=StructuredOutputs(json='{"type": "object"}'),
    truncate_prompt_tokens=100,
)


def test_every_field_of_the_request_can_be_set():
    request = conversion.generate_request(
        "hello",
        FULL,
        {
            "model": "m",
            "adapter": "a",
            "priority": -1,
            "cache_salt": "s",
            "request_id": "r",
            "add_special_tokens": False,
            "resume": Resume("r0", 5, [1, 2], {1: [3]}, 4, 1),
        },
    )
    unset = {field.name for field in request.DESCRIPTOR.fields} - {field.name for field, _ in request.ListFields()}
    assert unset == {"token_ids", "chat"}
    for part in (request.sampling, request.stopping, request.output, request.resume):
        assert {f.name for f in part.DESCRIPTOR.fields} == {f.name for f, _ in part.ListFields()}


def test_zero_is_sent_and_none_is_not():
    zero = conversion.generate_request("x", SamplingParams(temperature=0.0, top_k=0, seed=0), {})
    assert zero.sampling.HasField("temperature")
    assert zero.sampling.HasField("top_k")
    assert zero.sampling.HasField("seed")
    default = conversion.generate_request("x", None, {})
    unset = [
        f.name for f in default.sampling.DESCRIPTOR.fields if _is_optional(f) and default.sampling.HasField(f.name)
    ]
    assert unset == []
    assert not default.stopping.HasField("max_tokens")


def test_one_stop_text_may_be_given_bare():
    assert list(conversion.generate_request("x", SamplingParams(stop="END"), {}).stopping.stop) == ["END"]


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": -1},
        {"max_tokens": -5},
        {"seed": 1.5},
        {"n": True},
        {"temperature": float("nan")},
        {"top_p": float("inf")},
    ],
)
def test_impossible_values_name_the_field(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        SamplingParams(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stop": 5}, "stop must be a collection of texts, got 5"),
        ({"stop": ["a", b"b"]}, "stop must be text, not bytes"),
        ({"stop": "\udcff"}, "stop is not valid text: .* at position 0 cannot be sent"),
        ({"bad_words": "no"}, "bad_words must be a collection of texts"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a collection of token ids, got 5"),
        ({"stop_token_ids": ["5"]}, "stop_token_ids must be token ids, got '5'"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids has the token id -1, out of the range"),
        ({"logit_bias": [1]}, "logit_bias must map token ids"),
        ({"logit_bias": {1: "x"}}, "logit_bias must be a finite number"),
        ({"temperature": "hot"}, "temperature must be a finite number"),
        ({"max_tokens": 2**32}, "max_tokens is out of range"),
        ({"seed": 2**64}, "seed is out of range"),
    ],
)
def test_values_of_a_wrong_kind_name_the_field(values, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SamplingParams(**values)


@pytest.mark.parametrize("kinds", [{}, {"json": "{}", "regex": "a"}])
def test_structured_outputs_need_exactly_one_kind(kinds):
    with pytest.raises(ValueError, match="exactly one"):
        StructuredOutputs(**kinds)


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (StructuredOutputs(json="{}"), "json_schema"),
        (StructuredOutputs(json_object=True), "json_object"),
        (StructuredOutputs(regex="a+"), "regex"),
        (StructuredOutputs(grammar="root ::= a"), "grammar"),
        (StructuredOutputs(choice=["a", "b"]), "choice"),
        (StructuredOutputs(structural_tag="{}"), "structural_tag"),
    ],
)
def test_structured_outputs_set_their_kind(outputs, kind):
    request = conversion.generate_request("x", SamplingParams(structured_outputs=outputs), {})
    assert request.constraint.WhichOneof("kind") == kind


def test_prompt_kinds():
    assert as_proto("text") == "text"
    assert as_proto([1, 2]) == generate_pb2.TokenIds(ids=[1, 2])
    assert as_proto((3,)) == generate_pb2.TokenIds(ids=[3])
    assert as_proto([]) == generate_pb2.TokenIds()
    chat = as_proto([{"role": "user", "content": "hi"}, ChatMessage("assistant", "ho")])
    assert [(m.role, m.content) for m in chat.messages] == [("user", "hi"), ("assistant", "ho")]


def test_chat_options_travel():
    chat = as_proto(
        Chat([{"role": "user", "content": "hi"}], False, tools=[{"name": "f"}], template_args={"think": False})
    )
    assert chat.HasField("add_generation_prompt")
    assert not chat.add_generation_prompt
    assert chat.tools[0]["name"] == "f"
    assert chat.template_args["think"] is False


@pytest.mark.parametrize("prompt", [b"bytes", 5, None, [1.5]])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(TypeError, match="prompt"):
        as_proto(prompt)


@pytest.mark.parametrize("prompt", [[-1], [2**32], [{"rôle": "user"}], [{"role": "user", "text": "x"}]])
def test_wrong_values_in_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match=r"range|message"):
        as_proto(prompt)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("a\udcff", ValueError, r"prompt is not valid text: '\\udcff' at position 1 cannot be sent as UTF-8"),
        ([-1], ValueError, "prompt has the token id -1, out of the range from 0 to 4294967295"),
        ([1, "x"], TypeError, "prompt must be token ids, got 'x' among them"),
        ([{"role": "user", "content": 5}], TypeError, "content of a chat message must be text, not int"),
        ([ChatMessage("user", None)], TypeError, "content of a chat message must be text, not NoneType"),
        ([ChatMessage("user", "\udcff")], ValueError, "content of a chat message is not valid text"),
    ],
)
def test_prompts_that_cannot_be_sent_say_what_is_wrong(prompt, error, message):
    with pytest.raises(error, match=message):
        as_proto(prompt)


def _is_optional(field: descriptor.FieldDescriptor) -> bool:
    return field.has_presence
