"""Can a value travel in a request? What is wrong is named by its field."""

import math
import numbers
from collections.abc import Collection, Mapping

from pagewire_client.errors import PagewireError

MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1


class TextError(PagewireError, ValueError):
    """A text holds what UTF-8 cannot carry."""


def check_text(value: object, field: str) -> None:
    """See that a value is text that can be sent.

    Args:
        field: what to call it in an error.

    Raises:
        TypeError: it is no text.
        TextError: it holds half a surrogate pair, as bytes that were not UTF-8 become.
    """
    if not isinstance(value, str):
        raise TypeError(f"{field} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"{field} is not valid text: {value[error.start]!r} at position {error.start} cannot be sent as UTF-8; "
            "remove it or fix the encoding of the input"
        ) from None


def check_texts(values: object, field: str) -> None:
    """See that a value is a collection of texts that can be sent.

    Raises:
        TypeError: it is not.
        TextError: one of them cannot be sent.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Collection):
        raise TypeError(f"{field} must be a collection of texts, got {values!r}")
    for value in values:
        check_text(value, field)


def check_whole(value: object, field: str, most: int = MAX_UINT32) -> None:
    """See that a value is a whole number from 0 to `most`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{field} must be a whole number of 0 or more, got {value!r}")
    if value > most:
        raise ValueError(f"{field} is out of range: {value} is above {most}")


def check_real(value: object, field: str) -> None:
    """See that a value is a finite number.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{field} must be a finite number, got {value!r}")


def check_token_ids(ids: object, field: str) -> None:
    """See that a value is a collection of token ids.

    Raises:
        TypeError: it is no collection, or holds something else.
        ValueError: an id is out of range.
    """
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Collection):
        raise TypeError(f"{field} must be a collection of token ids, got {ids!r}")
    for token_id in ids:
        if not isinstance(token_id, numbers.Integral):
            raise TypeError(f"{field} must be token ids, got {token_id!r} among them")
        if not 0 <= int(token_id) <= MAX_UINT32:
            raise ValueError(f"{field} has the token id {token_id}, out of the range from 0 to {MAX_UINT32}")


def check_biases(biases: object, field: str) -> None:
    """See that a value maps token ids to finite numbers.

    Raises:
        TypeError: it is no mapping.
        ValueError: an id or a number is impossible.
    """
    if not isinstance(biases, Mapping):
        raise TypeError(f"{field} must map token ids to numbers, got {biases!r}")
    check_token_ids(list(biases), field)
    for value in biases.values():
        check_real(value, field)
