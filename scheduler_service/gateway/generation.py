"""What does one accepted request ask for? Everything needed to submit it, at once or again after a failure."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from pagewire.ipc.requests import Sampling, Submit
from scheduler_service.gateway.sent_tokens import NOTHING_SENT, SentTokens


def int32_array(values: Iterable[int] = ()) -> "array[int]":
    """Token ids as they travel in messages."""
    return array("i", values)


@dataclass(frozen=True, slots=True)
class Generation:
    """A validated request.

    `prompt_ids` and `received_ids` are int32; `received_ids` are output tokens that the caller has already, and
    `max_tokens` counts them; of `sent` the caller has them too, but not their ids. `is_resumed`: they are of an
    earlier stream, whose sequence may still live.
    `stop_token_ids` are the request's own, `end_token_ids` those and the model's (none of the model's when they are
    ignored). `deadline_s` is Unix time. `is_final_only`: no output before the end.
    `num_received_prompt_logprobs`: so many the caller has already. `echo`: the prompt's text, if it is to be repeated.
    `tenant`: whose request it is. `trace_context` names the span that it belongs to; empty: nobody traces it.
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
    sent: SentTokens = NOTHING_SENT
    num_received_prompt_logprobs: int = 0
    echo: str | None = None
    tenant: str = ""
    trace_context: str = ""

    def to_submit(
        self,
        stream_id: int,
        output_ids: "array[int]",
        *,
        resumes: bool,
        was_accepted: bool,
        num_prompt_logprobs: int = 0,
        num_deaths: int = 0,
    ) -> Submit:
        """The message that makes the scheduler run this request, after the output tokens that are there already.

        Args:
            stream_id: names the stream.
            output_ids: int32.
            resumes: go on with the request's sequence if it still lives.
            was_accepted: a scheduler took it.
            num_prompt_logprobs: so many of the prompt's are there already.
            num_deaths: workers that died while they ran it, without progress since.
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
            was_accepted=was_accepted,
            num_known_prompt_logprobs=num_prompt_logprobs,
            tenant=self.tenant,
            trace_context=self.trace_context,
            num_deaths=num_deaths,
        )
