"""Are stop texts found where a plain search finds them, however the text is cut, and never leaked?"""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from scheduler_service.gateway.stop_strings import StopFinder

letters = st.sampled_from("ab\n")
texts = st.text(letters, max_size=40)
stop_lists = st.lists(st.text(letters, min_size=1, max_size=6), min_size=1, max_size=4)


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """End of the match that is complete first, and the longest stop that ends there."""
    for end in range(1, len(text) + 1):
        ending_here = [stop for stop in stops if text[:end].endswith(stop)]
        if ending_here:
            return end, max(ending_here, key=len)
    return None


def cut(text: str, positions: list[int]) -> list[str]:
    edges = [0, *sorted({position for position in positions if position < len(text)}), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(texts, stop_lists, st.lists(st.integers(0, 40)), st.booleans())
@example("aab", ["ab", "aa"], [1, 2], False)
@example("abab\n", ["bab\n", "ba"], [2], False)
def test_stop_finder_equals_plain_search(text: str, stops: list[str], positions: list[int], include_stop: bool) -> None:
    finder = StopFinder(stops, include_stop=include_stop)
    emitted = ""
    for piece in cut(text, positions):
        emitted += finder.feed(piece, may_stop=True)
        if finder.found is not None:
            break
    else:
        emitted += finder.flush()
    match = first_stop(text, stops)
    if match is None:
        assert (emitted, finder.found) == (text, None)
    else:
        end, stop = match
        assert (emitted, finder.found) == (text[: end if include_stop else end - len(stop)], stop)


@given(texts, stop_lists)
def test_stop_finder_holds_back_exactly_what_may_become_a_stop(text: str, stops: list[str]) -> None:
    finder = StopFinder(stops, include_stop=False)
    emitted = ""
    for end, letter in enumerate(text, start=1):
        emitted += finder.feed(letter, may_stop=True)
        if finder.found is not None:
            return
        seen = text[:end]
        held = max(n for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n]))
        assert emitted == seen[: end - held]


@given(texts, texts, stop_lists)
def test_stop_finder_counts_only_matches_complete_after_the_minimum(before: str, after: str, stops: list[str]) -> None:
    finder = StopFinder(stops, include_stop=True)
    emitted = "".join(finder.feed(letter, may_stop=False) for letter in before)
    assert finder.found is None
    for letter in after:
        emitted += finder.feed(letter, may_stop=True)
        if finder.found is not None:
            break
    else:
        emitted += finder.flush()
    text = before + after
    ends = [end for end in range(len(before) + 1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert emitted == text[: ends[0] if ends else len(text)]


def test_stop_finder_does_not_hold_back_a_stop_that_does_not_count() -> None:
    finder = StopFinder(["ab", "bac"], include_stop=False)
    assert finder.feed("xab", may_stop=False) == "xa"
    assert finder.feed("b", may_stop=True) == "b"
    assert finder.feed("a", may_stop=True) == ""
    assert finder.flush() == "ba"


def test_stop_finder_is_linear_in_a_long_repetitive_stop() -> None:
    finder = StopFinder(["a" * 1024 + "b"], include_stop=False)
    emitted = "".join(finder.feed("a", may_stop=True) for _ in range(5_000))
    assert len(emitted) == 5_000 - 1024
    assert finder.feed("b", may_stop=True) == ""
    assert finder.found == "a" * 1024 + "b"
