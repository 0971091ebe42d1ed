"""Are chats rendered as transformers renders them, in a sandbox, with the template's own errors told?"""

from typing import Any

import pytest

from scheduler_service.gateway.chat_template import ChatTemplate, ChatTemplateError
from tests.fakes.tiny_model import CHAT_TEMPLATE

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = (
    "{{- bos_token }}\n{%- for message in messages %}\n    {%- if message.role == 'assistant' %}\n"
    "        {%- generation %}{{ message['content'] | trim }}{% endgeneration %}\n    {%- else %}\n"
    "[{{ message.role }}] {{ message['content'] | trim }}\n    {%- endif %}\n"
    "    {%- if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}\n"
    "    {%- if loop.index > 8 %}{% break %}{% endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}[assistant] {% endif -%}\n"
)
TOOLS = (
    "{% set ns = namespace(n=0) %}{% if tools is not none %}{% for tool in tools %}{% set ns.n = ns.n + 1 %}"
    "{{ ns.n }}: {{ tool | tojson(indent=2) }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}{{ message.role }}{{ ': ' ~ message.content if message.content else '' }}"
    "{{ eos_token }}{% endfor %}{{ enable_thinking | default('unset') }} {{ documents is none }}"
)
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is 2 < 3 & 'so'?"}],
    [
        {"role": "system", "content": "  Be brief.  "},
        {"role": "user", "content": "Grüß dich 😀\n\n"},
        {"role": "assistant", "content": "Hallo  "},
    ],
    [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "get", "arguments": {"city": "Zürich <1>"}}}],
        },
        {"role": "tool", "content": "17°", "tool_call_id": "c1"},
    ],
]
TOOL_SCHEMAS = [{"type": "function", "function": {"name": "get", "description": "ä < b", "parameters": {"n": 1}}}]


def render_with_transformers(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    variables: dict[str, Any] = {**TOKENS, **options}
    rendered: Any = render_jinja_template([messages], chat_template=template, **variables)
    return str(rendered[0][0])


@pytest.mark.parametrize("template", [CHATML, TRIMMING, TOOLS, CHAT_TEMPLATE])
@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat_template_renders_as_transformers(
    template: str, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    expected = render_with_transformers(
        template, messages, add_generation_prompt=add_generation_prompt, tools=TOOL_SCHEMAS, enable_thinking=False
    )
    rendered = ChatTemplate(template, TOKENS).render(
        messages,
        tools=TOOL_SCHEMAS,
        add_generation_prompt=add_generation_prompt,
        variables={"enable_thinking": False},
    )
    assert rendered == expected


@pytest.mark.parametrize("template", [CHATML, TRIMMING])
@pytest.mark.parametrize("content", ["The answer is", "The answer is ", "", "  x  "])
def test_chat_template_continues_the_final_message_as_transformers(template: str, content: str) -> None:
    messages = [{"role": "user", "content": "The answer is"}, {"role": "assistant", "content": content}]
    expected = render_with_transformers(template, messages, continue_final_message=True)
    assert ChatTemplate(template, TOKENS).render(messages, continue_final_message=True) == expected


def test_chat_template_leaves_the_callers_messages_alone() -> None:
    messages = [{"role": "user", "content": "x"}]
    ChatTemplate(CHATML, TOKENS).render(messages, continue_final_message=True)
    assert messages == [{"role": "user", "content": "x"}]


def test_chat_template_tells_its_own_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", TOKENS)
    with pytest.raises(ChatTemplateError, match=r"^roles must alternate$"):
        template.render([{"role": "user", "content": "x"}])


def test_chat_template_refuses_to_continue_a_message_that_it_leaves_out() -> None:
    template = ChatTemplate("{{ messages[0].content }}", TOKENS)
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    with pytest.raises(ChatTemplateError, match="leaves the last message out"):
        template.render(messages, continue_final_message=True)


def test_chat_template_refuses_what_is_no_template() -> None:
    with pytest.raises(ChatTemplateError, match=r"^line 2: "):
        ChatTemplate("ok\n{% for %}", TOKENS)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append({}) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ messages[0].content.missing.deeper }}",
        "{{ 1 // 0 }}",
    ],
)
def test_chat_template_stays_in_its_sandbox(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, TOKENS).render([{"role": "user", "content": "x"}])


def test_chat_template_knows_the_date() -> None:
    rendered = ChatTemplate("{{ strftime_now('%Y') }}", TOKENS).render([{"role": "user", "content": "x"}])
    assert rendered.isdigit()
    assert len(rendered) == 4
