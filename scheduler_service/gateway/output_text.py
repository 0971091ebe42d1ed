"""What text do a stream's tokens add? Detokenizes them and looks for stop texts, token by token."""

from scheduler_service.gateway.generation import Generation
from scheduler_service.gateway.stop_strings import StopFinder
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer


class OutputText:
    """The text side of one stream.

    Whatever is given out after n tokens depends on these n tokens alone, so a resumed stream continues exactly.
    """

    __slots__ = ("_detokenizer", "_finder", "_min_tokens", "_num_tokens")

    def __init__(self, generation: Generation, tokenizer: Tokenizer) -> None:
        self._detokenizer = tokenizer.detokenizer(skip_special_tokens=generation.skip_special_tokens)
        self._finder = (
            StopFinder(generation.stop_texts, include_stop=generation.include_stop) if generation.stop_texts else None
        )
        self._min_tokens = generation.min_tokens
        self._num_tokens = 0

    @property
    def looks_for_stops(self) -> bool:
        """Whether a stop text may end the stream."""
        return self._finder is not None

    @property
    def found(self) -> str | None:
        """The stop text that ended the stream."""
        return self._finder.found if self._finder else None

    def add(self, token_id: int) -> str:
        """Take the next token and return the text that can be given out."""
        self._num_tokens += 1
        return self._searched(self._detokenizer.step(token_id))

    def finish(self) -> str:
        """End the stream: return all text still held back."""
        text = self._searched(self._detokenizer.flush())
        return text if self._finder is None or self._finder.found else text + self._finder.flush()

    def _searched(self, text: str) -> str:
        if self._finder is None or not text:
            return text
        return self._finder.feed(text, may_stop=self._num_tokens > self._min_tokens)
