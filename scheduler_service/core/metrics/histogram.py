"""How are values counted in buckets, for next to nothing?"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Histogram:
    """Counts by bucket: counts[i] of values up to edges[i] and above the edge before, the last one of those above all.

    Args:
        edges: upper ends of the buckets, increasing.
    """

    __slots__ = ("_edge_array", "counts", "edges", "sum")

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(float(edge) for edge in edges)
        self.counts = [0] * (len(self.edges) + 1)
        self.sum = 0.0
        self._edge_array = np.array(self.edges)

    def observe(self, value: float, count: int = 1) -> None:
        """The value was seen so many times."""
        self.counts[bisect_left(self.edges, value)] += count
        self.sum += value * count

    def observe_all(self, values: FloatArray) -> None:
        """Each of the values was seen once. values: [n]."""
        places = np.bincount(self._edge_array.searchsorted(values), minlength=len(self.counts))
        self.counts = [old + new for old, new in zip(self.counts, places.tolist(), strict=True)]
        self.sum += float(values.sum())

    @property
    def count(self) -> int:
        """How many values were seen."""
        return sum(self.counts)


def one_two_five(most: int) -> list[float]:
    """Edges 1, 2, 5, 10, 20, 50 ... up to `most`, for numbers of tokens."""
    edges = (digit * 10**exponent for exponent in range(len(str(most))) for digit in (1, 2, 5))
    return [float(edge) for edge in edges if edge <= most]
