"""pagewire serve: a service on this machine, by way of the supervisor."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from pagewire_client.channel import DEFAULT_ADDRESS
from pagewire_client.checks import check_text
from pagewire_client.cli.printing import print_stream
from pagewire_client.client import Client
from pagewire_client.errors import PagewireError
from pagewire_client.local_service import LocalService
from pagewire_client.params import SamplingParams
from pagewire_client.prompts import ChatMessage, Prompt

_SUPERVISOR = "scheduler_service.supervisor"
_MAX_DEMO_TOKENS = 256
_MAX_TRIAL_TOKENS = 16


def _become_supervisor(arguments: Sequence[str]) -> None:
    os.execv(sys.executable, [sys.executable, "-m", _SUPERVISOR, *arguments])  # noqa: S606 (no shell is wanted)


def _show_engine_help(wanted: bool) -> None:
    if wanted:
        _become_supervisor(["--help"])


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="GGUF file, safetensors directory, Hub id, demo or dummy:NAME.")],
    listen: Annotated[
        list[str] | None,
        typer.Option("--listen", "-l", help=f"HOST:PORT or unix:/path; repeatable. Default: {DEFAULT_ADDRESS}."),
    ] = None,
    ask: Annotated[str | None, typer.Option("--ask", help="Answer this prompt first, then stay up.")] = None,
    once: Annotated[bool, typer.Option("--once", help="With --ask: end after the answer.")] = False,
    engine_help: Annotated[
        bool,
        typer.Option("--engine-help", help="List the engine's flags.", is_eager=True, callback=_show_engine_help),
    ] = False,
) -> None:
    """Serve a model: starts gateway, scheduler and workers, and ends them all on Ctrl-C.

    SIGTERM lets open streams end first, for up to --drain-timeout seconds; with --ask both signals end it at once.

    Other flags (--max-num-seqs 8 ...) are passed on to the engine; --engine-help lists them.
    """
    addresses = listen or [DEFAULT_ADDRESS]
    if ask is None:
        flags = [part for address in addresses for part in ("--listen", address)]
        _become_supervisor(["--model", model, *flags, *context.args])
    else:
        check_text(ask, "--ask")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            _serve_and_ask(model, addresses, ["--log-level", "warning", *context.args], ask, once)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def _serve_and_ask(model: str, listen: Sequence[str], flags: Sequence[str], prompt: str, once: bool) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    with LocalService(model, listen=listen, flags=flags) as service:
        service.wait_until_ready()
        try:
            _ask(service.addresses[0], prompt, console)
        except PagewireError as error:
            if once:
                raise
            console.print(f"pagewire: {error}")
        if once:
            return
        _print_ways_in(service, console)
        raise typer.Exit(service.wait())


def _ask(address: str, prompt: str, console: Console) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=_MAX_DEMO_TOKENS)
    with Client(address) as client:
        has_chat = client.list_models()[0].has_chat_template
        full_prompt: Prompt = [ChatMessage("user", prompt)] if has_chat else prompt
        console.print(Text.assemble("\n", (">", "bold cyan"), f" {prompt}"))
        with client.stream(full_prompt, params) as stream:
            print_stream(stream)


def _print_ways_in(service: LocalService, console: Console) -> None:
    address = service.addresses[0]
    python = shlex.quote(str(_short(Path(sys.executable))))
    program = (
        "from pagewire_client import Client, SamplingParams; "
        f"print(Client({json.dumps(address)}).generate("
        f'"The sky is", SamplingParams(max_tokens={_MAX_TRIAL_TOKENS})).text)'
    )
    request = json.dumps({"text": "The sky is", "stopping": {"max_tokens": _MAX_TRIAL_TOKENS}})
    target = shlex.quote(address)
    where = f" is served on {', '.join(service.addresses)}; Ctrl-C ends it. Try:\n"
    console.print(Text.assemble("\n", (service.model, "bold"), where))
    console.print(f"  {python} -m pagewire_client chat --address {target}")
    console.print(f"  {python} -c {shlex.quote(program)}")
    console.print(f"  grpcurl -plaintext -d {shlex.quote(request)} {target} pagewire.v1.InferenceService/Generate")
    if service.http_urls:
        base_url = f"{service.http_urls[0]}/v1"
        body = json.dumps({"prompt": "The sky is", "max_tokens": _MAX_TRIAL_TOKENS})
        console.print(f"  curl {base_url}/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}")
        console.print(f"\nOpenAI's clients are served too, with base_url={base_url}")
    console.print()


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
