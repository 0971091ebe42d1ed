"""Has every exception a status of its own over HTTP, and every field a name that OpenAI's callers know?"""

import pytest

from scheduler_service.gateway import exceptions
from scheduler_service.gateway.http import errors
from scheduler_service.gateway.openai.parameters import in_callers_terms


def test_every_request_error_has_a_status() -> None:
    assert set(errors._KINDS) == set(exceptions.RequestError.__subclasses__())


@pytest.mark.parametrize(
    ("field", "completion", "chat"),
    [
        ("sampling.temperature", "temperature", "temperature"),
        ("sampling.logit_bias[7]", "logit_bias[7]", "logit_bias[7]"),
        ("stopping.stop[0]", "stop[0]", "stop[0]"),
        ("stopping.include_stop", "include_stop_str_in_output", "include_stop_str_in_output"),
        ("output.logprobs", "logprobs", "top_logprobs"),
        ("token_ids.ids[3]", "prompt[3]", "messages[3]"),
        ("prompt", "prompt", "messages"),
        ("chat.messages[2].role", "messages[2].role", "messages[2].role"),
        ("chat.template_args.x", "chat_template_kwargs.x", "chat_template_kwargs.x"),
        ("resume.received_token_ids", "Last-Event-ID", "Last-Event-ID"),
        ("", "", ""),
    ],
)
def test_fields_have_the_callers_names(field: str, completion: str, chat: str) -> None:
    for is_chat, name in ((False, completion), (True, chat)):
        error = in_callers_terms(exceptions.InvalidArgumentError(field, "is wrong"), is_chat=is_chat)
        assert isinstance(error, exceptions.InvalidArgumentError)
        assert (error.field, error.problem) == (name, "is wrong")
        not_served = in_callers_terms(exceptions.NotServedError(field), is_chat=is_chat)
        assert isinstance(not_served, exceptions.NotServedError)
        assert not_served.field == name
