"""How does an answer reach standard output, and what is said when it cannot?"""

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pagewire_client.errors import PagewireError
from pagewire_client.types import Chunk


def print_stream(stream: Iterable[Chunk]) -> None:
    """Write text as it comes, and a line end at the last.

    Raises:
        PagewireError: it cannot be written.
    """
    for chunk in stream:
        print_text(chunk.text, end="")
    print_text("")


def print_text(text: str, end: str = "\n") -> None:
    """Write text to standard output now.

    Raises:
        PagewireError: it cannot be written.
    """
    with writing_output():
        print(text, end=end, flush=True)


def print_json(data: Any) -> None:
    """Write data, in which enums stand for their values, as indented JSON.

    Raises:
        PagewireError: it cannot be written.
    """
    print_text(json.dumps(data, default=lambda value: value.value, indent=2))


@contextmanager
def writing_output() -> Iterator[None]:
    """While the body writes to standard output: turn its failure into one for people.

    Raises:
        PagewireError: it cannot be written, but not because its reader has left, which is no failure.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        # What is still buffered would fail once more at the end of the process.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise PagewireError(f"cannot write to standard output: {error.strerror}; check where it leads") from error
