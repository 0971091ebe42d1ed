"""Sixteen streams of all kinds at once on the demo model, one of which can be made to kill something half-way."""

import json
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pagewire_client import Client, Completion, SamplingParams

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_greedy.json").read_text())
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
_NUM_STREAMS = 16
_MAX_PROMPT_TOKENS = 50


def run_streams(
    client: Client, kill_at: Collection[int] = (), kill: Callable[[], object] = lambda: None
) -> list[Completion]:
    """Run them; `kill` is called when the first has had so many chunks."""

    def run(number: int) -> Completion:
        texts = []
        params = _params(number)
        with client.stream(GOLDEN[number]["prompt_ids"][:_MAX_PROMPT_TOKENS], params) as stream:
            for chunk in stream:
                if chunk.index == 0:
                    texts.append(chunk.text)
                if number == 0 and len(texts) in kill_at:
                    kill()
        assert stream.completion is not None
        assert "".join(texts) == stream.completion.text
        assert len(stream.completion.choices) == (params.n or 1)
        for choice in stream.completion.choices:
            with_logprobs = [logprobs.token_id for logprobs in choice.logprobs]
            assert with_logprobs == ([] if params.logprobs is None else list(choice.token_ids))
        prompt_ids = GOLDEN[number]["prompt_ids"][:_MAX_PROMPT_TOKENS]
        of_prompt = [logprobs.token_id for logprobs in stream.completion.prompt_logprobs]
        assert of_prompt == ([] if params.prompt_logprobs is None else prompt_ids[1:])
        return stream.completion

    with ThreadPoolExecutor(_NUM_STREAMS) as threads:
        return list(threads.map(run, range(_NUM_STREAMS)))


def _params(number: int) -> SamplingParams:
    """Greedy, sampled, with stop texts that may span tokens and the kill, with penalties, logprobs and choices."""
    stop = (".\n", " of the", ", and", "s.") if number % 4 >= 2 else ()
    temperature = 0.0 if number % 4 == 0 else 0.8
    frequency, repetition = (0.3, 1.1) if number % 3 == 0 else (0.0, 1.0)
    return SamplingParams(
        temperature=temperature,
        seed=number,
        max_tokens=24,
        ignore_eos=True,
        stop=stop,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logprobs=number % 5 if number % 2 == 0 else None,
        n=2 if number % 8 == 6 else None,
        prompt_logprobs=number % 3 if number % 4 < 2 else None,
        echo=number % 8 in (5, 6),
    )
