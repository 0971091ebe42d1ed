"""The callers: so many streams at once, each begun again when it ends, until the file `stop` is there.

    python -m tests.cluster.streams TARGET FOLDER

Reads `requests.json` of the folder: for each stream a prompt and its sampling parameters. Writes a line of JSON to
`streams.jsonl` when a stream has had its first token, and one when it has ended.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from pagewire_client import AsyncClient, RequestError, SamplingParams
from pagewire_client.aio import AsyncStream

_NUM_CLIENTS = 8
_BETWEEN_BEGINNINGS_S = 0.01
# For what hangs: nobody waits so long otherwise.
_LIMIT_S = 300.0


class _CountingStream(AsyncStream):
    """Counts how often it was resumed."""

    num_resumes = 0

    def _open(self, request: Any) -> Any:
        self.num_resumes += request.HasField("resume")
        return super()._open(request)


class Callers:
    """All of them, with clients of their own as the library makes them."""

    def __init__(self, target: str, folder: Path) -> None:
        self._folder = folder
        self._clients = [AsyncClient(target) for _ in range(_NUM_CLIENTS)]
        self._lines = (folder / "streams.jsonl").open("a", buffering=1)

    async def run(self) -> None:
        """Run until told to stop, and every stream to its end."""
        requests = json.loads((self._folder / "requests.json").read_text())
        await asyncio.gather(*(self._call(index, request) for index, request in enumerate(requests)))
        for client in self._clients:
            await client.close()

    async def _call(self, index: int, request: dict[str, Any]) -> None:
        params = SamplingParams(**request["params"])
        client = self._clients[index % len(self._clients)]
        # Calls that wait for the first connection would all go to the gateway that is reached first.
        await asyncio.sleep(index * _BETWEEN_BEGINNINGS_S)
        while True:
            await self._stream(client.stream(request["prompt_ids"], params, timeout=_LIMIT_S), index)
            if (self._folder / "stop").exists():
                return

    async def _stream(self, stream: AsyncStream, index: int) -> None:
        stream.__class__ = _CountingStream
        assert isinstance(stream, _CountingStream)
        token_ids: list[int] = []
        began_s = last_s = time.monotonic()
        longest_gap_s = first_s = 0.0
        error = ""
        try:
            async for chunk in stream:
                now_s = time.monotonic()
                if token_ids:
                    longest_gap_s = max(longest_gap_s, now_s - last_s)
                elif chunk.token_ids:
                    first_s = now_s - began_s
                    self._write(index=index, first=True)
                last_s = now_s
                token_ids += chunk.token_ids
            completion = await stream.collect()
            if list(completion.token_ids) != token_ids:
                error = f"its chunks were {token_ids}, its end was {completion.token_ids}"
        except RequestError as failure:
            error = f"after {len(token_ids)} tokens: {type(failure).__name__}: {failure}"
        self._write(
            index=index,
            token_ids=token_ids,
            error=error,
            num_resumes=stream.num_resumes,
            longest_gap_s=longest_gap_s,
            first_s=first_s,
        )

    def _write(self, **fields: object) -> None:
        self._lines.write(json.dumps(fields) + "\n")


async def _main() -> None:
    await Callers(sys.argv[1], Path(sys.argv[2])).run()


if __name__ == "__main__":
    asyncio.run(_main())
