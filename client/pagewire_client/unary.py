"""Which request messages do the small calls send, and what do they hand back? Shared by both clients."""

from pagewire.v1 import inference_pb2
from pagewire_client import conversion
from pagewire_client.prompts import Prompt
from pagewire_client.types import Tokens


def tokenize_request(
    prompt: Prompt, model: str = "", add_special_tokens: bool | None = None
) -> inference_pb2.TokenizeRequest:
    """Build the message for text or chat messages.

    Raises:
        TypeError: the prompt is token ids already.
    """
    field = conversion.prompt_field(prompt)
    if "token_ids" in field:
        raise TypeError("token ids cannot be tokenized: give text or chat messages")
    return inference_pb2.TokenizeRequest(model=model, add_special_tokens=add_special_tokens, **field)


def tokens(response: inference_pb2.TokenizeResponse) -> Tokens:
    """Translate the answer to Tokenize."""
    return Tokens(tuple(response.token_ids), response.max_model_len)
