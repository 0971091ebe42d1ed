"""`pagewire serve` as a process of its own, whose metrics and log lines a test can read."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from urllib.error import URLError

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.free_port import free_port
from tests.fakes.patience import PATIENCE_S

Labels = frozenset[tuple[str, str]]


class Scrape:
    """One answer of /metrics, read by Prometheus' own parser."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: dict[str, str] = {}
        self._values: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            assert family.name not in self.kinds, f"{family.name} is there twice"
            self.kinds[family.name] = family.type
            for sample in family.samples:
                series = self._values.setdefault(sample.name, {})
                labels = frozenset(sample.labels.items())
                assert labels not in series, f"{sample} is there twice"
                series[labels] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name with these labels; there must be one."""
        assert any(labels.items() <= own.items() for own in self.labels(name)), f"there is no {name} with {labels}"
        return self._sum(name, labels)

    def since(self, before: "Scrape", name: str, **labels: str) -> float:
        """By how much that sum has grown; a series that was not there was 0."""
        return self._sum(name, labels) - before._sum(name, labels)

    def _sum(self, name: str, wanted: dict[str, str]) -> float:
        series = self._values.get(name, {})
        return sum(value for own, value in series.items() if wanted.items() <= dict(own).items())

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of each sample of this name."""
        return [dict(own) for own in self._values.get(name, {})]

    @property
    def names(self) -> set[str]:
        """Names of all samples."""
        return set(self._values)


class ObservedService:
    """A service on free ports of 127.0.0.1. Log lines go to a file.

    Args:
        log: the file.
        flags: of `pagewire serve`, beside those for addresses and a small model.
    """

    def __init__(self, log: Path, *flags: str) -> None:
        self.http, self.metrics_port, grpc_port = free_port(), free_port(), free_port()
        self.address = f"127.0.0.1:{grpc_port}"
        self._log = log
        small = ["--cpu-memory-gib", "0.1", "--threads", "1", "--max-model-len", "32000"]
        ports = ["--listen", self.address, "--http", f"127.0.0.1:{self.http}"]
        ports += ["--metrics", f"127.0.0.1:{self.metrics_port}"]
        self._command = [sys.executable, "-m", "pagewire_client", "serve", "dummy:tiny", *small, *ports, *flags]

    def __enter__(self) -> "ObservedService":
        with self._log.open("wb") as log:
            # Spans are sent at once, and not every five seconds.
            environment = os.environ | {"OTEL_BSP_SCHEDULE_DELAY": "50"}
            self.process = subprocess.Popen(self._command, stderr=log, env=environment)
        self.wait_until(lambda: self.get("/readyz") is not None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """End it as an operator would."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def get(self, path: str, port: int | None = None) -> str | None:
        """What a page says; None if it cannot be had."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.http}{path}", timeout=PATIENCE_S) as answer:
                text: str = answer.read().decode()
                return text
        except (URLError, ConnectionError):
            return None

    def scrape(self, port: int | None = None) -> Scrape:
        """The metrics, of the gateway unless another port is given."""
        text = self.get("/metrics", port)
        assert text is not None, self.log_text()
        return Scrape(text)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until this holds."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self.log_text()
            assert time.monotonic() < deadline_s, self.log_text()
            time.sleep(0.02)

    def child(self, name: str) -> psutil.Process:
        """The running process with this part in its command line."""
        found = [p for p in psutil.Process(self.process.pid).children() if name in " ".join(p.cmdline())]
        return found[0]

    def log_text(self) -> str:
        """All that was logged."""
        return self._log.read_text()

    def log_entries(self) -> list[dict[str, object]]:
        """All that was logged, of a service that logs JSON: every line is an object."""
        entries = [json.loads(line) for line in self.log_text().splitlines()]
        assert all(isinstance(entry, dict) for entry in entries)
        return entries
