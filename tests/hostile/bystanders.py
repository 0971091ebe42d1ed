"""Callers who behave, while others do not: they notice nothing of it."""

import threading
import time
from types import TracebackType
from typing import Self

import grpc

from tests.hostile.service import HostileService

_PAUSE_S = 0.05


class Bystanders:
    """While entered, one asks for answers again and again, and the memory of all processes is looked at.

    `num_answers` are right ones; `peak_growth_bytes` is the most that any process had more than at the start.
    """

    def __init__(self, service: HostileService) -> None:
        self.num_answers = 0
        self.wrong: list[str] = []
        self.peak_growth_bytes = 0
        self._service = service
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask), threading.Thread(target=self._measure)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._over.is_set() and not self.wrong:
            try:
                self.wrong += [f"a bystander: {line}" for line in self._service.check_callers()]
            except (grpc.RpcError, OSError) as error:
                self.wrong.append(f"a bystander gets {error}")
            self.num_answers += 1
            time.sleep(_PAUSE_S)

    def _measure(self) -> None:
        before = self._service.vitals().resident_bytes
        while not self._over.wait(_PAUSE_S):
            now = self._service.vitals().resident_bytes
            growth = max(after - was for was, after in zip(before, now, strict=True))
            self.peak_growth_bytes = max(self.peak_growth_bytes, growth)
