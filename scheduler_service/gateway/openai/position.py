"""How far is a stream, in a few characters? Every event carries it as its id, and any gateway can go on from there.

REQUEST:SEED:CREATED:FRAMES:TOKENS-CHARS-CHECKSUM[,TOKENS-CHARS-CHECKSUM ...]

FRAMES counts the events that are not output: those before it, and those after it. The rest is for each choice.
"""

import re
from dataclasses import dataclass, field

from scheduler_service.gateway.exceptions import InvalidArgumentError
from scheduler_service.gateway.sent_tokens import NOTHING_SENT, SentTokens

MAX_RESUMABLE_CHOICES = 32
"""With more choices ids would be longer than what they name, and events have none."""

_PARAMETER = "Last-Event-ID"
_ID = re.compile(
    r"(?P<request>[A-Za-z0-9._-]{1,64}):(?P<seed>\d{1,20}):(?P<created>\d{1,12}):(?P<frames>\d{1,6})"
    r":(?P<choices>\d{1,10}-\d{1,10}-[0-9a-f]{8}(?:,\d{1,10}-\d{1,10}-[0-9a-f]{8})*)",
    re.ASCII,
)


@dataclass(slots=True)
class ChoicePosition:
    """What was sent of one choice. `num_chars` counts those of its tokens."""

    sent: SentTokens = NOTHING_SENT
    num_chars: int = 0


@dataclass(slots=True)
class Position:
    """What was sent of one answer, and what it needs to go on: the seed of its random numbers, and when it began."""

    request_id: str
    seed: int
    created_s: int
    choices: list[ChoicePosition] = field(default_factory=list)
    num_frames: int = 0

    def event_id(self) -> str:
        """The position as text; empty where it would be long."""
        if len(self.choices) > MAX_RESUMABLE_CHOICES:
            return ""
        choices = ",".join(
            f"{choice.sent.num_tokens}-{choice.num_chars}-{choice.sent.checksum:08x}" for choice in self.choices
        )
        return f"{self.request_id}:{self.seed}:{self.created_s}:{self.num_frames}:{choices}"


def parse_event_id(text: str, num_choices: int) -> Position:
    """Read an event's id.

    Raises:
        InvalidArgumentError: it is none of ours, or that of an answer to another request.
    """
    found = _ID.fullmatch(text)
    if found is None or int(found["seed"]) >= 2**64:
        raise InvalidArgumentError(_PARAMETER, "is no id of an event of this API: send the last one that came")
    choices = [_choice(*part.split("-")) for part in found["choices"].split(",")]
    if len(choices) != num_choices:
        problem = f"is of an answer with {len(choices)} choices, and this request has {num_choices}: send the same body"
        raise InvalidArgumentError(_PARAMETER, problem)
    return Position(found["request"], int(found["seed"]), int(found["created"]), choices, int(found["frames"]))


def _choice(num_tokens: str, num_chars: str, checksum: str) -> ChoicePosition:
    return ChoicePosition(SentTokens(int(num_tokens), int(checksum, 16)), int(num_chars))
