"""How does a script use a model without a server? `LLM`: a private service behind vLLM's and nano-vllm's calls."""

import asyncio
import sys
import threading
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from rich.console import Console

from pagewire_client.aio import AsyncClient
from pagewire_client.batch import Job, run_jobs
from pagewire_client.local_service import LocalService, flags_from
from pagewire_client.outputs import RequestOutput
from pagewire_client.params import SamplingParams
from pagewire_client.progress import BatchProgress
from pagewire_client.prompts import Chat, Message, Prompt

_Result = TypeVar("_Result")
_Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A model served by processes of its own, which end with it.

        with LLM("demo") as llm:
            for output in llm.generate(["One", "Two"], SamplingParams(max_tokens=16)):
                print(output.outputs[0].text)

    Ends on `close()`, at the end of a `with` block, when collected, and at exit.

    Args:
        model: a GGUF file, a safetensors directory, a Hub id, "demo" or "dummy:NAME".
        log_level: least level of the processes' log lines on standard error.
        progress: show how far the start is.
        start_timeout_s: longest time to wait for the start, downloads included.
        engine_args: flags of the supervisor as keywords, for example max_num_seqs=8 or prefix_caching=False.

    Raises:
        ServiceStartError: the service did not start; the message says why.
    """

    def __init__(
        self,
        model: str,
        *,
        log_level: str = "warning",
        progress: bool = True,
        start_timeout_s: float | None = None,
        **engine_args: object,
    ) -> None:
        flags = flags_from({"log_level": log_level, "progress": progress, **engine_args})
        self._service = LocalService(model, flags=flags)
        self._service.wait_until_ready(start_timeout_s)
        self._loop = _LoopThread()
        self._client = self._loop.run(_open(",".join(self._service.addresses)))
        self._finalizer = weakref.finalize(self, _close, self._loop, self._client, self._service)

    @property
    def address(self) -> str:
        """Where the service listens, for a `Client` of one's own."""
        return self._service.addresses[0]

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt | Mapping[str, Any]] | Mapping[str, Any],
        sampling_params: _Params = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts; outputs come in prompt order.

        Args:
            prompts: one prompt or a list: text, token ids, or vLLM's {"prompt": text} and {"prompt_token_ids": ids},
                which may have a "cache_salt": cached prefixes are shared with prompts of the same salt alone.
            sampling_params: for all, or one for each.
            use_tqdm: show a progress bar, if this is a terminal.

        Raises:
            RequestError: a request failed; the others are cancelled.
        """
        each = [_plain(prompt) for prompt in _as_list(prompts)]
        salts = [_cache_salt(prompt) for prompt in _as_list(prompts)]
        all_params = _spread(sampling_params, len(each))
        jobs = [Job(p, params, salt) for p, params, salt in zip(each, all_params, salts, strict=True)]
        return self._run(jobs, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: _Params = None,
        use_tqdm: bool = True,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[RequestOutput]:
        """Answer one conversation or several, rendered with the model's chat template.

        Raises:
            RequestError: a request failed; the others are cancelled.
        """
        is_one = bool(messages) and not isinstance(messages[0], (list, tuple))
        conversations = [messages] if is_one else messages
        chats = [
            Chat(
                cast(Sequence[Message], conversation),
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                template=chat_template,
                tools=tools,
            )
            for conversation in conversations
        ]
        jobs = [Job(c, params) for c, params in zip(chats, _spread(sampling_params, len(chats)), strict=True)]
        return self._run(jobs, use_tqdm)

    def close(self) -> None:
        """Stop the service and wait for its end."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, jobs: Sequence[Job], show_progress: bool) -> list[RequestOutput]:
        console = Console(file=sys.stderr)
        with BatchProgress(console, len(jobs), show_progress and console.is_terminal) as progress:
            return self._loop.run(run_jobs(self._client, jobs, progress.add_tokens, progress.add_done))


class _LoopThread:
    """An event loop in a thread of its own, for use from synchronous code."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pagewire-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine there and wait; an interrupt here cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _open(address: str) -> AsyncClient:
    return AsyncClient(address)


def _close(loop: _LoopThread, client: AsyncClient, service: LocalService) -> None:
    loop.run(client.close())
    loop.stop()
    service.close()


def _as_list(prompts: Any) -> list[Any]:
    is_one = isinstance(prompts, (str, Mapping, Chat)) or (bool(prompts) and isinstance(prompts[0], int))
    return [prompts] if is_one else list(prompts)


def _plain(prompt: Any) -> Prompt:
    if isinstance(prompt, Mapping):
        if "prompt_token_ids" in prompt:
            return cast(Sequence[int], prompt["prompt_token_ids"])
        if "prompt" in prompt:
            return cast(str, prompt["prompt"])
        raise ValueError(f"a prompt needs 'prompt' or 'prompt_token_ids', got {', '.join(prompt) or 'nothing'}")
    return cast(Prompt, prompt)


def _cache_salt(prompt: Any) -> str:
    return str(prompt.get("cache_salt", "")) if isinstance(prompt, Mapping) else ""


def _spread(params: _Params, count: int) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise ValueError(f"{count} prompts need as many sampling parameters, got {len(params)}")
    return params
