"""How does a message look that was damaged on its way, or made by someone who looks for holes in a parser?"""

import random
from collections.abc import Callable

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
# Lengths that lie: varints of 2**32 - 1, of 2**63 and of more bytes than a varint may have.
_LONG_VARINTS = (b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"\xff" * 11)
_MAX_BYTES = 1 << 20


def mutate(data: bytes, choice: random.Random, other: bytes = b"") -> bytes:
    """Damage a message in one to four ways; `other` is one to take pieces from."""
    damaged = bytearray(data)
    for _ in range(choice.randint(1, 4)):
        choice.choice(_WAYS)(damaged, choice, other)
    return bytes(damaged[:_MAX_BYTES])


def _flip_bit(data: bytearray, choice: random.Random, _other: bytes) -> None:
    if data:
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)


def _set_byte(data: bytearray, choice: random.Random, _other: bytes) -> None:
    if data:
        data[choice.randrange(len(data))] = choice.choice(_INTERESTING)


def _truncate(data: bytearray, choice: random.Random, _other: bytes) -> None:
    del data[choice.randint(0, len(data)) :]


def _remove(data: bytearray, choice: random.Random, _other: bytes) -> None:
    start = choice.randint(0, len(data))
    del data[start : start + choice.randint(1, 16)]


def _repeat(data: bytearray, choice: random.Random, _other: bytes) -> None:
    start = choice.randint(0, len(data))
    piece = data[start : start + choice.randint(1, 64)]
    data[start:start] = piece * choice.choice((1, 2, 100))


def _splice(data: bytearray, choice: random.Random, other: bytes) -> None:
    start = choice.randint(0, len(other))
    place = choice.randint(0, len(data))
    data[place : place + choice.randint(0, 8)] = other[start : start + choice.randint(1, 64)]


def _insert(data: bytearray, choice: random.Random, _other: bytes) -> None:
    place = choice.randint(0, len(data))
    data[place:place] = choice.randbytes(choice.randint(1, 16))


def _lie_about_length(data: bytearray, choice: random.Random, _other: bytes) -> None:
    place = choice.randint(0, len(data))
    data[place : place + 1] = choice.choice(_LONG_VARINTS)


_WAYS: tuple[Callable[[bytearray, random.Random, bytes], None], ...] = (
    *(_flip_bit, _set_byte, _truncate, _remove, _repeat, _splice, _insert, _lie_about_length),
)
