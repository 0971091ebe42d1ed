"""How does an answer reach the terminal? As it is made, straight to standard output."""

import sys
from collections.abc import Iterable

from pagewire_client.types import Chunk


def print_stream(stream: Iterable[Chunk]) -> None:
    """Write text as it comes, and a line end at the last."""
    for chunk in stream:
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
