"""Which streams run while the cluster is disturbed, and was each what it is without disturbance?"""

import asyncio
import json
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.release import HEADLESS, Release, client_pod
from tests.cluster.waiting import until

_LONGEST_PROMPT = 96
_MOVED = re.compile(r"streams resubmitted num_streams=(\d+)")


@dataclass(slots=True)
class Result:
    """One row of the summary.

    Attributes:
        num_moved: how often gateways gave a stream to another engine, or to the same one again.
        num_resumed: streams that clients resumed at another gateway.
        longest_gap_s: between two tokens of a stream.
        longest_first_s: until the first one.
        wrong: a line for each stream that failed or was different.
    """

    name: str
    num_streams: int = 0
    num_tokens: int = 0
    num_failed: int = 0
    num_different: int = 0
    num_moved: int = 0
    num_resumed: int = 0
    longest_gap_s: float = 0.0
    longest_first_s: float = 0.0
    duration_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def make_requests(count: int, max_tokens: int, vocab_size: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of all lengths, greedy and seeded by turns; each has a beginning in common with others."""
    source = random.Random(seed)
    beginnings = [[source.randrange(3, vocab_size) for _ in range(_LONGEST_PROMPT // 2)] for _ in range(8)]
    requests = []
    for index in range(count):
        own = [source.randrange(3, vocab_size) for _ in range(source.randint(1, _LONGEST_PROMPT // 2))]
        params = {"max_tokens": max_tokens, "ignore_eos": True}
        params |= {"temperature": 0.0} if index % 2 else {"temperature": 1.0, "top_p": 0.95, "seed": index}
        requests.append({"prompt_ids": beginnings[index % len(beginnings)] + own, "params": params})
    return requests


class Load:
    """The callers' pod, from `start` to `stop`."""

    def __init__(self, cluster: Cluster, release: Release, requests: Sequence[dict[str, Any]], name: str) -> None:
        self._cluster = cluster
        self._num_moved_before = 0
        self._num_streams = len(requests)
        self._folder = release.load_folder / name
        self._folder.mkdir()
        self._folder.chmod(0o777)
        self._result = Result(name)
        (self._folder / "requests.json").write_text(json.dumps(requests))
        command = ("python", "-m", "tests.cluster.streams", HEADLESS, f"/load/{name}")
        self._pod = cluster.pod(client_pod(f"client-{name}", *command))
        self._running: asyncio.Task[int]
        self._began_s = 0.0

    async def start(self) -> None:
        """Start it, and wait until every stream has had a token."""
        self._began_s = asyncio.get_running_loop().time()
        self._num_moved_before = self._num_moved()
        self._running = asyncio.create_task(self._pod.run())
        await until(lambda: self._running.done() or self._num_begun() == self._num_streams)

    async def stop(self) -> dict[int, list[list[int]]]:
        """Begin no more streams, and wait for the end of all; gives the tokens of each request's streams."""
        (self._folder / "stop").touch()
        status = await self._running
        assert status == 0, self._pod.log("client").read_text()
        tokens: dict[int, list[list[int]]] = {}
        for line in self._lines():
            if "first" not in line:
                tokens.setdefault(line["index"], []).append(line["token_ids"])
        return tokens

    def result(self, expected: dict[int, list[int]]) -> Result:
        """The summary, once it has stopped."""
        result = self._result
        result.duration_s = asyncio.get_running_loop().time() - self._began_s
        result.num_moved = self._num_moved() - self._num_moved_before
        for line in self._lines():
            if "first" not in line:
                result.num_streams += 1
                _add(result, line, expected[line["index"]])
        shutil.rmtree(self._folder)
        return result

    def _num_moved(self) -> int:
        return sum(map(int, _MOVED.findall(self._cluster.logs("gateway"))))

    def _num_begun(self) -> int:
        return len({line["index"] for line in self._lines()})

    def _lines(self) -> list[dict[str, Any]]:
        path = Path(self._folder, "streams.jsonl")
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _add(result: Result, line: dict[str, Any], expected: list[int]) -> None:
    result.num_tokens += len(line["token_ids"])
    result.num_resumed += line["num_resumes"] > 0
    result.longest_gap_s = max(result.longest_gap_s, line["longest_gap_s"])
    result.longest_first_s = max(result.longest_first_s, line["first_s"])
    if line["error"]:
        result.num_failed += 1
        result.wrong.append(f"{result.name}: stream of request {line['index']} failed {line['error']}")
    elif line["token_ids"] != expected:
        result.num_different += 1
        pairs = enumerate(zip(line["token_ids"], expected, strict=False))
        at = next((at for at, (got, wanted) in pairs if got != wanted), min(len(line["token_ids"]), len(expected)))
        result.wrong.append(
            f"{result.name}: stream of request {line['index']} differs from token {at} on: "
            f"{line['token_ids'][at : at + 8]} instead of {expected[at : at + 8]}"
        )
