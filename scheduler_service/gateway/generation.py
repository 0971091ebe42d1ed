"""What does one accepted request ask for? Everything needed to submit it, at once or again after a failure."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from pagewire.ipc.requests import Sampling, Submit


def int32_array(values: Iterable[int] = ()) -> "array[int]":
    """Token ids as they travel in messages."""
    return array("i", values)


@dataclass(frozen=True, slots=True)
class Generation:
    """A validated request.

    `prompt_ids` and `received_ids` are int32; `received_ids` are output tokens that the caller has already, and
    `max_tokens` counts them. `is_resumed`: they are of an earlier stream, whose sequence may still live.
    `stop_token_ids` are the request's own, `end_token_ids` those and the model's (none of the model's when they are
    ignored). `deadline_s` is Unix time. `is_final_only`: no output before the end.
    """

    request_id: str
    prompt_ids: "array[int]"
    received_ids: "array[int]"
    sampling: Sampling
    max_tokens: int
    min_tokens: int
    stop_token_ids: tuple[int, ...]
    end_token_ids: frozenset[int]
    ignore_eos: bool
    priority: int
    cache_salt: str
    deadline_s: float | None
    stop_texts: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    sends_text: bool
    is_final_only: bool
    is_resumed: bool = False
    tenant: str = ""

    def to_submit(self, stream_id: int, output_ids: "array[int]", *, resumes: bool, was_accepted: bool) -> Submit:
        """The message that makes the scheduler run this request, after the output tokens that are there already.

        Args:
            stream_id: names the stream.
            output_ids: int32.
            resumes: go on with the request's sequence if it still lives.
            was_accepted: an earlier scheduler took it.
        """
        return Submit(
            stream_id=stream_id,
            request_id=self.request_id,
            token_ids=(self.prompt_ids + output_ids).tobytes(),
            num_prompt_tokens=len(self.prompt_ids),
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            priority=self.priority,
            cache_salt=self.cache_salt,
            deadline_s=self.deadline_s,
            resumes=resumes,
            was_accepted=was_accepted or self.is_resumed,
            tenant=self.tenant,
        )
