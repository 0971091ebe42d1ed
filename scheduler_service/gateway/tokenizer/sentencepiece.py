"""Which merges does a SentencePiece BPE vocabulary imply? Its files list scores in place of merges."""

from collections.abc import Iterable, Mapping


def merges_from_scores(ids: Mapping[str, int], scores: Iterable[tuple[str, float]]) -> list[tuple[str, str]]:
    """List the merges in the order in which they apply.

    SentencePiece joins the adjacent pair whose joined token has the highest score. So every way to cut a token into two
    known tokens is a merge, and it ranks by the token's score.

    Args:
        ids: every token's id.
        scores: the tokens that merging may produce, with their scores.
    """
    merges = [
        (-score, ids[left], ids[right], left, right)
        for token, score in scores
        for left, right in _cuts(token)
        if left in ids and right in ids
    ]
    merges.sort()
    return [(left, right) for _, _, _, left, right in merges]


def _cuts(token: str) -> list[tuple[str, str]]:
    return [(token[:at], token[at:]) for at in range(1, len(token))]
