"""Whether a request may enter, and if not, why: everything that could never run is refused at the door."""

from dataclasses import dataclass

import numpy as np

from pagewire.ipc.requests import Limits, ModelInfo, RejectReason, Submit


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request may not enter; see pagewire.ipc.requests.Rejected."""

    reason: RejectReason
    field: str
    message: str
    retry_after_s: float = 0.0


def check(submit: Submit, limits: Limits, model: ModelInfo) -> int | Refusal:
    """The most tokens (prompt plus output) the request may come to, or why it is refused.

    Without `max_tokens` a request may use what the model's length and the KV cache allow.
    """
    if len(submit.token_ids) % 4 or not submit.token_ids:
        return _invalid("token_ids", "the prompt is empty" if not submit.token_ids else "not an array of int32")
    token_ids = np.frombuffer(submit.token_ids, dtype="<i4")
    num_tokens = len(token_ids)
    if token_ids.min() < 0 or token_ids.max() >= model.vocab_size:
        return _invalid("token_ids", f"holds a token id outside 0 to {model.vocab_size - 1}")
    if not 1 <= submit.num_prompt_tokens <= num_tokens:
        return _invalid("num_prompt_tokens", f"is {submit.num_prompt_tokens} of {num_tokens} tokens")
    if not 0 <= submit.num_known_prompt_logprobs < submit.num_prompt_tokens:
        return _invalid("num_known_prompt_logprobs", f"is {submit.num_known_prompt_logprobs}")
    if submit.max_tokens is not None and submit.max_tokens < 1:
        return _invalid("max_tokens", f"is {submit.max_tokens}: it must be at least 1")
    capacity = limits.num_blocks * limits.block_size
    # The last token is never computed, so it needs no room in the KV cache.
    longest = min(limits.max_model_len, capacity + 1)
    name = "max_model_len" if longest == limits.max_model_len else "the KV cache"
    if num_tokens >= longest:
        return _invalid("token_ids", f"{num_tokens} tokens leave no room for output: {name} allows {longest} in all")
    if submit.max_tokens is None:
        return longest
    total = submit.num_prompt_tokens + submit.max_tokens
    if total > longest:
        return _invalid(
            "max_tokens",
            f"{submit.num_prompt_tokens} prompt tokens and max_tokens {submit.max_tokens} come to {total}: "
            f"{name} allows {longest} in all",
        )
    if total <= num_tokens:
        return _invalid("max_tokens", f"is {submit.max_tokens}, and {num_tokens - submit.num_prompt_tokens} are there")
    return total


def _invalid(field: str, message: str) -> Refusal:
    return Refusal(RejectReason.INVALID, field, message)
