"""Which streams run, what each gave without disturbance, and how far each is now?"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pagewire_client import Client, RequestError, SamplingParams, Stream

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_greedy.json").read_text())
_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Request:
    """One stream to run; `golden` are tokens that it must begin with, empty if nobody knows them."""

    prompt_ids: list[int]
    params: SamplingParams
    golden: list[int]


@dataclass(frozen=True, slots=True)
class Whole:
    """What a stream gave."""

    token_ids: list[int]
    text: str


@dataclass(slots=True)
class Progress:
    """One stream while it runs: what came so far, in chunks, and how it ended."""

    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    stream: Stream | None = None
    whole: Whole | None = None
    error: str = ""

    @property
    def is_accepted(self) -> bool:
        """Whether a gateway has taken it."""
        return self.stream is not None and self.stream.accepted is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.whole is not None or bool(self.error)


def make_requests(count: int, max_tokens: int, *, knows_golden: bool = True) -> list[Request]:
    """Greedy and seeded streams by turns, over the shorter prompts of the golden file."""
    cases = sorted(GOLDEN, key=lambda case: len(case["prompt_ids"]))
    requests = []
    for index in range(count):
        case = cases[index % (len(cases) // 2)]
        if index % 2 == 0:
            params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
            golden = case["output_ids"][:max_tokens] if knows_golden else []
            requests.append(Request(case["prompt_ids"], params, golden))
        else:
            params = SamplingParams(temperature=1.0, top_p=0.95, seed=index, max_tokens=max_tokens, ignore_eos=True)
            requests.append(Request(case["prompt_ids"], params, []))
    return requests


class Wave:
    """All requests at once, each in a thread. The client spreads them over the gateways."""

    def __init__(self, requests: Sequence[Request], client: Client) -> None:
        self.progress = [Progress() for _ in requests]
        self._pool = ThreadPoolExecutor(len(requests))
        for request, progress in zip(requests, self.progress, strict=True):
            self._pool.submit(_run, request, client, progress)

    @property
    def is_over(self) -> bool:
        """Whether every stream has ended."""
        return all(progress.is_over for progress in self.progress)

    @property
    def has_failed(self) -> bool:
        """Whether a stream has ended with an error."""
        return any(progress.error for progress in self.progress)

    def counts(self) -> list[int | None]:
        """Tokens of each stream so far; None for those that have ended."""
        return [None if progress.is_over else len(progress.token_ids) for progress in self.progress]

    def num_ahead(self, since: Sequence[int | None], num_tokens: int) -> int:
        """Streams that were open and have ended, or got so many tokens more."""
        return sum(
            before is not None and (progress.is_over or len(progress.token_ids) >= before + num_tokens)
            for before, progress in zip(since, self.progress, strict=True)
        )

    def went_on(self, since: Sequence[int | None], num_tokens: int) -> bool:
        """Whether every stream that was open has ended, or got so many tokens more."""
        return self.num_ahead(since, num_tokens) == sum(before is not None for before in since)

    def cancel(self) -> None:
        """End every stream that still runs."""
        for progress in self.progress:
            if progress.stream is not None and not progress.is_over:
                progress.error = f"cancelled after {len(progress.token_ids)} tokens"
                progress.stream.close()

    def close(self) -> None:
        """Wait for all threads."""
        self._pool.shutdown()


def _run(request: Request, client: Client, progress: Progress) -> None:
    try:
        with client.stream(request.prompt_ids, request.params, timeout_s=_LIMIT_S) as stream:
            progress.stream = stream
            for chunk in stream:
                progress.texts.append(chunk.text)
                progress.token_ids += chunk.token_ids
            completion = stream.collect()
            progress.whole = Whole(list(completion.token_ids), completion.text)
    except RequestError as error:
        progress.error = progress.error or f"{type(error).__name__}: {error}"


def differences(requests: Sequence[Request], progress: Sequence[Progress], expected: Sequence[Whole]) -> list[str]:
    """What is wrong with the streams of a wave that is over, one line for each that is not intact."""
    wrong = []
    for index, (request, got, wanted) in enumerate(zip(requests, progress, expected, strict=True)):
        kind = "greedy" if request.params.temperature == 0 else "seeded"
        if got.error or got.whole is None:
            wrong.append(f"stream {index} ({kind}) failed: {got.error}")
        elif Whole(got.token_ids, "".join(got.texts)) != got.whole:
            wrong.append(f"stream {index} ({kind}): its chunks are {got.token_ids} {got.texts}, all is {got.whole}")
        elif got.whole != wanted:
            wrong.append(f"stream {index} ({kind}) is {got.whole} instead of {wanted}")
    return wrong
