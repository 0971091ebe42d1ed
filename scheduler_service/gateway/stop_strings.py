"""Where does a stream's text first contain one of its stop texts? Finds them across pieces and never leaks one.

All stop texts form one trie whose nodes are their prefixes; after each character the current node is the longest suffix
of the text that is a prefix of a stop text. That suffix is what must be held back.
Source: Aho and Corasick, "Efficient string matching: an aid to bibliographic search", CACM 18(6), 1975, section 2.
"""

from collections import deque
from collections.abc import Iterable


class _Node:
    """A prefix of some stop text.

    `fallback` is its longest proper suffix that is a prefix too (the root's is None); `stop` the longest stop text that
    it ends with; `num_held` how many of its last characters may still grow into a stop text.
    """

    __slots__ = ("children", "fallback", "num_held", "stop")

    def __init__(self, depth: int) -> None:
        self.children: dict[str, _Node] = {}
        self.fallback: _Node | None = None
        self.stop: str | None = None
        self.num_held = depth

    def after(self, character: str) -> "_Node":
        """The node after one more character of text."""
        node = self
        while character not in node.children:
            if node.fallback is None:
                return node
            node = node.fallback
        return node.children[character]


class StopFinder:
    """Looks for stop texts in the text of one stream as it arrives.

    The match that is complete first counts; of those complete at the same character, the longest.

    Args:
        stops: the texts, none empty.
        include_stop: leave the found text in the output.
    """

    __slots__ = ("_held", "_include_stop", "_node", "_root", "found")

    def __init__(self, stops: Iterable[str], *, include_stop: bool) -> None:
        self._root = self._node = _trie(stops)
        self._include_stop = include_stop
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str, *, may_stop: bool) -> str:
        """Take the next piece and return the text that can be given out.

        Once `found` is set the stream has ended and nothing more may be fed.

        Args:
            text: the piece.
            may_stop: False: stop texts that become complete in this piece do not count.
        """
        assert self.found is None, "text after the stop"
        node = self._node
        if node is self._root and self._root.children.keys().isdisjoint(text):
            return text
        for position, character in enumerate(text, start=1):
            node = node.after(character)
            if node.stop is not None and may_stop:
                self.found = node.stop
                whole = self._held + text[:position]
                return whole if self._include_stop else whole[: len(whole) - len(node.stop)]
        self._node = node
        whole = self._held + text
        given_out = len(whole) - node.num_held
        self._held = whole[given_out:]
        return whole[:given_out]

    def flush(self) -> str:
        """End the stream: return what was held back."""
        held, self._held, self._node = self._held, "", self._root
        return held


def _trie(stops: Iterable[str]) -> _Node:
    root = _Node(0)
    for stop in stops:
        node = root
        for depth, character in enumerate(stop, start=1):
            if character not in node.children:
                node.children[character] = _Node(depth)
            node = node.children[character]
        node.stop = stop
    _link(root)
    return root


def _link(root: _Node) -> None:
    """Set what depends on a node's suffixes; shorter prefixes come first, so theirs are known."""
    queue = deque(root.children.values())
    for node in queue:
        node.fallback = root
    while queue:
        node = queue.popleft()
        assert node.fallback is not None
        node.stop = node.stop or node.fallback.stop
        if not node.children:
            node.num_held = node.fallback.num_held
        for character, child in node.children.items():
            child.fallback = node.fallback.after(character)
            queue.append(child)
