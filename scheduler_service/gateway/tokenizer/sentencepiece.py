"""Which merges does a SentencePiece BPE vocabulary imply? Its files list scores in place of merges."""

from collections.abc import Container, Iterable


def merges_from_scores(known: Container[str], scores: Iterable[tuple[str, float]]) -> list[tuple[str, str]]:
    """List the merges in the order in which they apply.

    SentencePiece joins the adjacent pair whose joined token has the highest score. So every way to cut a token into two
    known tokens is a merge, and it ranks by the token's score. Of equal pairs SentencePiece joins the leftmost; ranking
    long left parts first comes to the same, which long runs of spaces tell.

    Args:
        known: every token.
        scores: the tokens that merging may produce, with their scores.
    """
    merges = [
        (-score, -len(left), left, right)
        for token, score in scores
        for left, right in _cuts(token)
        if left in known and right in known
    ]
    merges.sort()
    return [(left, right) for _, _, left, right in merges]


def _cuts(token: str) -> list[tuple[str, str]]:
    return [(token[:at], token[at:]) for at in range(1, len(token))]
