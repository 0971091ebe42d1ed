"""How are log probabilities told, as OpenAI's two APIs want them?"""

from collections.abc import Iterable, Sequence
from typing import Any

from pagewire.v1 import generate_pb2
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer

# JSON has no infinity.
_LEAST_LOGPROB = -9999.0


def chat_logprobs(
    tokens: Iterable[generate_pb2.TokenLogprobs], tokenizer: Tokenizer, num_top: int
) -> dict[str, list[dict[str, Any]] | None]:
    """For a chat completion's choice, or a part of one."""
    content = [
        {
            **_entry(token.token_id, token.logprob, tokenizer),
            "top_logprobs": [_entry(top.token_id, top.logprob, tokenizer) for top in token.top[:num_top]],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokens: Sequence[generate_pb2.TokenLogprobs],
    tokenizer: Tokenizer,
    *,
    text_offset: int,
    num_chars: Sequence[int],
) -> dict[str, list[Any]]:
    """For a completion's choice, or a part of one. The token itself is always among its alternatives.

    Args:
        tokens: one per token.
        tokenizer: says their texts.
        text_offset: where the first one begins in the choice's text.
        num_chars: of each token.
    """
    offsets = []
    for count in num_chars:
        offsets.append(text_offset)
        text_offset += count
    return {
        "tokens": [token_text(token.token_id, tokenizer) for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [
            {
                token_text(top.token_id, tokenizer): _finite(top.logprob)
                for top in (generate_pb2.TopLogprob(token_id=token.token_id, logprob=token.logprob), *token.top)
            }
            for token in tokens
        ],
        "text_offset": offsets,
    }


def echo_logprobs(
    prompt_ids: Sequence[int], tokens: Sequence[generate_pb2.TokenLogprobs], tokenizer: Tokenizer, num_top: int
) -> dict[str, list[Any]]:
    """For the prompt at the head of a completion. Nothing predicts its first token.

    Args:
        prompt_ids: all its tokens.
        tokens: those from the second one on.
        tokenizer: says their texts.
        num_top: alternatives of each.
    """
    num_chars = count_chars(prompt_ids, tokenizer, skips_special=True)
    shown = [_with_top(token, num_top) for token in tokens]
    rest = completion_logprobs(shown, tokenizer, text_offset=num_chars[0], num_chars=num_chars[1:])
    first = {"tokens": token_text(prompt_ids[0], tokenizer), "text_offset": 0}
    return {name: [first.get(name), *values] for name, values in rest.items()}


def prompt_logprobs(
    tokens: Iterable[generate_pb2.TokenLogprobs], tokenizer: Tokenizer, num_top: int
) -> list[dict[str, Any] | None]:
    """As vLLM tells them: for each token of a prompt, by token id; the first has none."""
    told: list[dict[str, Any] | None] = [None]
    for token in tokens:
        ranked = [(token.token_id, token.logprob, token.rank)]
        ranked += [(top.token_id, top.logprob, rank) for rank, top in enumerate(token.top[:num_top], start=1)]
        told.append(
            {
                str(token_id): {
                    "logprob": _finite(logprob),
                    "rank": rank,
                    "decoded_token": token_text(token_id, tokenizer),
                }
                for token_id, logprob, rank in ranked
            }
        )
    return told


def token_text(token_id: int, tokenizer: Tokenizer) -> str:
    """What is said of one token: its text, or its bytes where these are no whole characters."""
    data = tokenizer.bytes_of(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def count_chars(token_ids: Iterable[int], tokenizer: Tokenizer, *, skips_special: bool) -> list[int]:
    """How many characters begin in each token's part of the text."""
    return [
        0 if skips_special and tokenizer.is_special(token_id) else _num_begun(tokenizer.bytes_of(token_id))
        for token_id in token_ids
    ]


def _with_top(token: generate_pb2.TokenLogprobs, num_top: int) -> generate_pb2.TokenLogprobs:
    return generate_pb2.TokenLogprobs(token_id=token.token_id, logprob=token.logprob, top=token.top[:num_top])


def _num_begun(data: bytes) -> int:
    """Bytes that do not go on with a character."""
    return sum(byte & 0xC0 != 0x80 for byte in data)


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.bytes_of(token_id)
    return {"token": token_text(token_id, tokenizer), "logprob": _finite(logprob), "bytes": list(data)}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
