"""Which engine gets a request?"""

from collections.abc import Sequence

from scheduler_service.gateway.engines.engine import Engine
from scheduler_service.gateway.generation import Generation


class Chooser:
    """Follows the engines that are there, and chooses one for each request."""

    def add(self, engine: Engine) -> None:
        """An engine is there."""

    def remove(self, engine: Engine) -> None:
        """An engine is gone."""

    def choose(self, engines: Sequence[Engine], generation: Generation) -> Engine:
        """One of several engines that are READY."""
        return min(engines, key=lambda engine: engine.num_streams)
