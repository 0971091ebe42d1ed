"""What do the processes' log lines look like? Text for people, or one JSON object a line for machines.

A record's `name=%s` parts become fields of their own, so that whoever logs writes one line for both:

    logger.info("request refused request_id=%s reason=%s", "r-1", "full")
    {"time": "2026-01-31T12:00:00.000123Z", "level": "info", "logger": "...", "process": "scheduler",
     "message": "request refused request_id=r-1 reason=full", "pid": 71, "request_id": "r-1", "reason": "full"}
"""

import enum
import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from functools import lru_cache

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
# Every conversion of a %-format, with the name before it if there is one: "x=%d %s" gives "x" and "".
_CONVERSION = re.compile(r"(?:(\w+)=)?%(?:%|[-#0 +]*(?:\d+|\*)?(?:\.(?:\d+|\*))?[a-zA-Z])")


class LogFormat(enum.StrEnum):
    """How lines are written."""

    TEXT = "text"
    JSON = "json"


def configure_logging(process: str, level: str, log_format: str) -> None:
    """Log to standard error from here on. `process` is what JSON lines call this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if log_format == LogFormat.JSON else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class JsonFormatter(logging.Formatter):
    """One JSON object per record.

    Args:
        process: name of this process.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        entry = entry_of(self._process, record.getMessage(), record.levelname.lower(), record.name, record.created)
        entry["pid"] = os.getpid()
        for name, value in _fields(record).items():
            entry.setdefault(name, value)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return to_line(entry)


def entry_of(process: str, message: str, level: str, logger: str, created_s: float) -> dict[str, object]:
    """What every JSON line says. `created_s` is Unix time."""
    return {
        "time": datetime.fromtimestamp(created_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": level,
        "logger": logger,
        "process": process,
        "message": message,
    }


def to_line(entry: dict[str, object]) -> str:
    """A JSON line, without its end."""
    return json.dumps(entry, default=str, ensure_ascii=False)


def from_line(line: str) -> dict[str, object] | None:
    """What a JSON line says; None if it is none."""
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _fields(record: logging.LogRecord) -> dict[str, object]:
    names = _names(record.msg) if isinstance(record.msg, str) else ()
    if not isinstance(record.args, tuple) or len(names) != len(record.args):
        return {}
    return {name: _plain(value) for name, value in zip(names, record.args, strict=True) if name}


@lru_cache(maxsize=1024)
def _names(template: str) -> tuple[str, ...]:
    """For each argument of a format its name, empty if it has none. A width taken from the arguments names nothing."""
    return tuple(match[1] or "" for match in _CONVERSION.finditer(template) if not match[0].endswith("%%"))


def _plain(value: object) -> object:
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
