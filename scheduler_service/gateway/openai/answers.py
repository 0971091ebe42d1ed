"""How is one request answered? By a GenerateRequest for each prompt, all at once: one object, or a stream of chunks."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from pagewire.v1 import generate_pb2
from scheduler_service.gateway.generate import Generator
from scheduler_service.gateway.http.event_stream import EventStream
from scheduler_service.gateway.openai.bodies import GenerationBody, StreamOptions
from scheduler_service.gateway.openai.position import Position
from scheduler_service.gateway.openai.shapes import Json, Part, Shape, usage

_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done for one HTTP request.

    `requests` has one for each prompt, each with `num_choices`; choice i of prompt p is number p * num_choices + i.
    `prompts` are the prompts' token ids, if the caller wants them. `position`: what the caller has already.
    """

    requests: Sequence[generate_pb2.GenerateRequest]
    num_choices: int
    prompts: Sequence[list[int]]
    position: Position

    def prompt_of(self, choice: int) -> list[int] | None:
        """The token ids of a choice's prompt, if they are wanted."""
        return self.prompts[choice // self.num_choices] if self.prompts else None


async def answer_whole(task: Task, generator: Generator, shape: Shape) -> bytes:
    """Give the whole answer as JSON.

    Raises:
        RequestError: why there is none.
    """
    parts = [Part() for _ in task.position.choices]
    finished: dict[int, generate_pb2.Finished] = {}

    async def write(prompt: int, response: generate_pb2.GenerateResponse) -> None:
        if response.HasField("delta"):
            parts[prompt * task.num_choices + response.delta.index].add(response.delta)
        elif response.HasField("finished"):
            finished[prompt] = response.finished

    await _run(task, generator, write)
    for number, part in enumerate(parts):
        # They came with the prompt's first choice.
        part.prompt_logprobs = parts[number - number % task.num_choices].prompt_logprobs
    ends = [shape.end(end) for prompt in range(len(task.requests)) for end in _ends(finished[prompt])]
    choices = [
        shape.whole_choice(index, part, end, task.prompt_of(index))
        for index, (part, end) in enumerate(zip(parts, ends, strict=True))
    ]
    return msgspec.json.encode(shape.whole(task.position, choices, _total_usage(finished), task.prompts))


class StreamedAnswer:
    """One answer in chunks, from where its caller's position says.

    What is said before the output, and after it, are frames: the position counts those that were sent.

    Args:
        task: what is to be done.
        generator: does it.
        shape: how chunks look.
        events: takes them.
        body: says what the chunks tell.
    """

    def __init__(
        self,
        task: Task,
        generator: Generator,
        shape: Shape,
        events: EventStream,
        body: GenerationBody,
    ) -> None:
        self._task = task
        self._generator = generator
        self._shape = shape
        self._events = events
        options = body.stream_options or StreamOptions()
        self._includes_usage = options.include_usage
        self._tells_usage_always = options.include_usage and options.continuous_usage_stats
        self._tells_token_ids = body.return_token_ids
        self._position = task.position
        self._num_frames_before = task.position.num_frames
        self._num_frames = 0
        self._num_prompt_tokens = 0
        self._num_to_accept = len(task.requests)
        self._begun = asyncio.Event()
        self._turn = asyncio.Lock()
        self._finished: dict[int, generate_pb2.Finished] = {}

    async def run(self) -> None:
        """Send everything up to [DONE].

        Raises:
            RequestError: why it ends early; nothing was sent if the stream has not begun.
        """
        if self._num_frames_before >= self._num_all_frames():
            await self._events.begin()
        else:
            await self._generate()
        await self._events.send(_DONE)
        await self._events.end()

    def _num_all_frames(self) -> int:
        choices = range(len(self._position.choices))
        num_heads = sum(len(self._shape.heads(index, self._task.prompt_of(index))) for index in choices)
        return num_heads + len(choices) + self._includes_usage

    async def _generate(self) -> None:
        pinging = asyncio.create_task(self._events.ping_when_idle())
        try:
            await _run(self._task, self._generator, self._write)
            await self._send_ends()
        finally:
            pinging.cancel()

    async def _write(self, prompt: int, response: generate_pb2.GenerateResponse) -> None:
        if response.HasField("accepted"):
            self._num_prompt_tokens += response.accepted.num_prompt_tokens
            await self._accept()
        elif response.HasField("finished"):
            self._finished[prompt] = response.finished
        else:
            async with self._turn:
                await self._send_delta(prompt * self._task.num_choices + response.delta.index, response.delta)

    async def _accept(self) -> None:
        """Begin once all requests are accepted: until then the answer may still be an error's status."""
        self._num_to_accept -= 1
        if self._num_to_accept:
            await self._begun.wait()
            return
        await self._events.begin()
        for index in range(len(self._position.choices)):
            prompt = self._task.prompt_of(index)
            for choice in self._shape.heads(index, prompt):
                await self._send_frame([choice], [] if prompt is None else [prompt])
        self._begun.set()

    async def _send_delta(self, index: int, delta: generate_pb2.Delta) -> None:
        choice = self._position.choices[index]
        part = Part(num_chars_before=choice.num_chars)
        part.add(delta)
        choice.sent = choice.sent.after(delta.token_ids)
        choice.num_chars += sum(self._shape.count_chars(delta.token_ids))
        # Text that is held back comes with a later event, and so does the position after these tokens.
        if delta.text or delta.logprobs or self._tells_token_ids:
            await self._send_chunk([self._shape.delta_choice(index, part)])

    async def _send_ends(self) -> None:
        ends = [end for prompt in range(len(self._task.requests)) for end in _ends(self._finished[prompt])]
        for index, end in enumerate(ends):
            await self._send_frame([self._shape.last_choice(index, self._shape.end(end))])
        if self._includes_usage:
            await self._send_frame([], counts=_total_usage(self._finished))

    async def _send_frame(
        self, choices: Sequence[Json], prompts: Sequence[list[int]] = (), counts: Json | None = None
    ) -> None:
        """Send what is no output, unless the caller has it already."""
        self._num_frames += 1
        if self._num_frames > self._num_frames_before:
            self._position.num_frames = self._num_frames
            await self._send_chunk(choices, prompts, counts)

    async def _send_chunk(
        self, choices: Sequence[Json], prompts: Sequence[list[int]] = (), counts: Json | None = None
    ) -> None:
        chunk = self._shape.chunk(self._position, choices, prompts)
        if self._tells_usage_always and counts is None:
            num_output_tokens = sum(choice.sent.num_tokens for choice in self._position.choices)
            counts = usage(self._num_prompt_tokens, num_output_tokens)
        if self._includes_usage or counts is not None:
            chunk["usage"] = counts
        await self._events.send(msgspec.json.encode(chunk), self._position.event_id())


async def _run(
    task: Task, generator: Generator, write: Callable[[int, generate_pb2.GenerateResponse], Awaitable[None]]
) -> None:
    """Answer all requests at once; the first that fails ends all."""

    async def answer(prompt: int) -> None:
        async def write_one(response: generate_pb2.GenerateResponse) -> None:
            await write(prompt, response)

        choices = task.position.choices[prompt * task.num_choices : (prompt + 1) * task.num_choices]
        sent = [choice.sent for choice in choices]
        await generator.answer(task.requests[prompt], write_one, time_remaining_s=None, sent=sent)

    try:
        async with asyncio.TaskGroup() as group:
            for prompt in range(len(task.requests)):
                group.create_task(answer(prompt))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _ends(finished: generate_pb2.Finished) -> Sequence[generate_pb2.Finished | generate_pb2.ChoiceFinished]:
    return finished.choices or [finished]


def _total_usage(finished: dict[int, generate_pb2.Finished]) -> Json:
    counts = [one.usage for one in finished.values()]
    return usage(
        sum(one.num_prompt_tokens for one in counts),
        sum(one.num_output_tokens for one in counts),
        sum(one.num_cached_tokens for one in counts),
    )
