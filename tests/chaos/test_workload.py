"""Does the suite see a stream that is not intact?"""

import pytest

from pagewire_client import SamplingParams
from tests.chaos.workload import Progress, Request, Whole, differences

REQUEST = Request([1], SamplingParams(temperature=0.0), [])
EXPECTED = Whole([5, 6, 7], "abc")


def finished(token_ids: list[int], texts: list[str], whole: Whole | None = EXPECTED, error: str = "") -> Progress:
    return Progress(token_ids, texts, None, whole, error)


def test_a_stream_that_gave_the_same_is_intact():
    assert differences([REQUEST], [finished([5, 6, 7], ["a", "bc"])], [EXPECTED]) == []


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        (finished([5, 6, 6, 7], ["a", "b", "c"]), "its chunks are"),
        (finished([5, 6, 7], ["a", "b", "b", "c"]), "its chunks are"),
        (finished([5, 6], ["a", "b"], Whole([5, 6], "ab")), "instead of"),
        (finished([5, 6, 7], ["abd"], Whole([5, 6, 7], "abd")), "instead of"),
        (finished([5], ["a"], None, "UnavailableError: gone"), "failed: UnavailableError: gone"),
        (finished([5], ["a"], None), "failed"),
    ],
)
def test_a_stream_that_is_not_intact_is_told(got, problem):
    (line,) = differences([REQUEST], [got], [EXPECTED])
    assert line.startswith("stream 0 (greedy)")
    assert problem in line
