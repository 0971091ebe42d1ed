"""Which sequences run on though their gateway is gone, for how long, and who may go on with one?"""

import logging
from array import array
from dataclasses import dataclass

from pagewire.ipc.requests import RejectReason, Submit
from scheduler_service.core.admission import Refusal
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.sequence import Sequence

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Orphan:
    sequence: Sequence
    num_tokens: int
    expires_s: float


class Orphans:
    """Sequences without a gateway, oldest orphan first. Those that end meanwhile are kept too, with their tokens."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._grace_s = config.orphan_grace_s
        self._max_orphans = config.max_orphans
        self._max_tokens = config.max_orphan_tokens
        self._orphans: dict[str, _Orphan] = {}
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._orphans)

    @property
    def num_ended(self) -> int:
        """Those of them that have ended."""
        return sum(orphan.sequence.is_over for orphan in self._orphans.values())

    def take_in(self, sequence: Sequence, now_s: float) -> bool:
        """Keep a sequence for the grace period. False: there is no room for it, or another has its request id."""
        num_tokens = len(sequence.token_ids)
        has_room = len(self._orphans) < self._max_orphans and self._num_tokens + num_tokens <= self._max_tokens
        if not has_room or not self._grace_s or sequence.request_id in self._orphans:
            return False
        self._orphans[sequence.request_id] = _Orphan(sequence, num_tokens, now_s + self._grace_s)
        self._num_tokens += num_tokens
        return True

    def find(self, request_id: str) -> Sequence | None:
        """The orphan of this request, running or ended."""
        orphan = self._orphans.get(request_id)
        return None if orphan is None else orphan.sequence

    def let_go(self, sequence: Sequence) -> None:
        """It has a gateway again, or its time is over."""
        if self.find(sequence.request_id) is sequence:
            self._num_tokens -= self._orphans.pop(sequence.request_id).num_tokens

    def let_go_expired(self, now_s: float) -> list[Sequence]:
        """Orphans whose grace period is over; they are kept no longer."""
        expired = [orphan.sequence for orphan in self._orphans.values() if orphan.expires_s <= now_s]
        for sequence in expired:
            self.let_go(sequence)
            logger.info("nobody resumed request_id=%s num_tokens=%d", sequence.request_id, len(sequence.token_ids))
        return expired


def check_resume(sequence: Sequence, submit: Submit, max_total_tokens: int) -> Refusal | None:
    """Why this request may not go on with the sequence of its id: it must be the same request, further behind."""
    token_ids = array("i")
    token_ids.frombytes(submit.token_ids)
    if submit.sampling.seed != sequence.sampling.seed:
        return _refuse("the seed is not that of the running request; send Accepted.seed")
    if submit.num_prompt_tokens != sequence.num_prompt_tokens or token_ids != sequence.token_ids[: len(token_ids)]:
        return _refuse("prompt and received tokens are not those that the running request begins with")
    is_same = (
        submit.sampling == sequence.sampling
        and submit.cache_salt == sequence.cache_salt
        and submit.tenant == sequence.tenant
        and max_total_tokens == sequence.max_total_tokens
        and submit.num_prompt_tokens + submit.min_tokens == sequence.min_total_tokens
        and sequence.stop_token_ids.issuperset(submit.stop_token_ids)
        and submit.num_known_prompt_logprobs <= sequence.num_known_prompt_logprobs
    )
    return (
        None
        if is_same
        else _refuse("sampling, limits, stop tokens or prompt log probabilities are not those of the running request")
    )


def _refuse(message: str) -> Refusal:
    return Refusal(RejectReason.INVALID, "resumes", message)
