"""What do OpenAI's callers call a field of GenerateRequest?"""

import re

from scheduler_service.gateway.exceptions import InvalidArgumentError, NotServedError

_NAMES = {
    "stopping.include_stop": "include_stop_str_in_output",
    "chat": "messages",
    "chat.messages": "messages",
    "chat.template": "chat_template",
    "chat.template_args": "chat_template_kwargs",
    "chat.add_generation_prompt": "add_generation_prompt",
    "text": "prompt",
    "token_ids.ids": "prompt",
    "request_id": "X-Request-Id",
    "resume": "Last-Event-ID",
    "resume.request_id": "Last-Event-ID",
    "resume.seed": "Last-Event-ID",
    "resume.received_token_ids": "Last-Event-ID",
}
_CHAT_NAMES = {"prompt": "messages", "token_ids.ids": "messages", "output.logprobs": "top_logprobs"}
# Groups of the message, which bodies do not have.
_GROUP = re.compile(r"^(?:sampling|stopping|output)\.")


def in_callers_terms(error: Exception, *, is_chat: bool) -> Exception:
    """The same error, about the parameter that the caller knows."""
    names = _NAMES | _CHAT_NAMES if is_chat else _NAMES
    match error:
        case InvalidArgumentError():
            return InvalidArgumentError(_name(error.field, names), error.problem)
        case NotServedError():
            return NotServedError(_name(error.field, names))
        case _:
            return error


def _name(field: str, names: dict[str, str]) -> str:
    """Translate the longest beginning that has a name of its own; an index or a further field stays."""
    for end in sorted({len(field), *(match.start() for match in re.finditer(r"[.\[]", field))}, reverse=True):
        if field[:end] in names:
            return names[field[:end]] + field[end:]
    return _GROUP.sub("", field)
