"""pagewire chat: a conversation in the terminal."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from pagewire_client.channel import DEFAULT_ADDRESS
from pagewire_client.checks import check_text
from pagewire_client.cli import options
from pagewire_client.cli.connection import connect
from pagewire_client.cli.printing import print_stream
from pagewire_client.client import Client
from pagewire_client.errors import PagewireError
from pagewire_client.params import SamplingParams
from pagewire_client.prompts import ChatMessage

_HELP = "Ctrl-C stops an answer, /clear forgets the conversation, /exit or Ctrl-D leaves."


def chat(
    address: options.Address = DEFAULT_ADDRESS,
    local: options.Local = None,
    api_key_file: options.ApiKeyFile = None,
    tls: options.UseTls = False,
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    system: Annotated[str, typer.Option("--system", help="Instruction put before the conversation.")] = "",
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
) -> None:
    """Talk with the model; it sees the whole conversation."""
    params = options.sampling_params(max_tokens, temperature, top_p, top_k, min_p, seed, stop)
    console = Console(stderr=True, highlight=False)
    check_text(system, "--system")
    opening = [ChatMessage("system", system)] if system else []
    access = options.access(api_key_file, tls, tls_ca, tls_cert, tls_key)
    with connect(address, local, access) as client:
        model = client.list_models()[0]
        if not model.has_chat_template:
            raise PagewireError(f"{model.name} has no chat template: use 'pagewire generate'")
        console.print(Text.assemble((model.name, "bold"), f"  {_HELP}"))
        history = list(opening)
        while (line := _ask(console)) is not None:
            if line == "/clear":
                history = list(opening)
            elif line:
                _answer(client, history, line, params, console)


def _ask(console: Console) -> str | None:
    """The next line; None to leave."""
    try:
        line = console.input("[bold cyan]>[/] ").strip()
    except (EOFError, KeyboardInterrupt):
        return None
    except UnicodeDecodeError as error:
        raise PagewireError(f"standard input is not {error.encoding} text: {error.reason}; convert it first") from error
    return None if line == "/exit" else line


def _answer(client: Client, history: list[ChatMessage], line: str, params: SamplingParams, console: Console) -> None:
    """Stream one answer; a turn that was stopped or failed leaves no trace in the history."""
    turn = ChatMessage("user", line)
    try:
        with client.stream([*history, turn], params) as stream:
            print_stream(stream)
            completion = stream.collect()
    except KeyboardInterrupt:
        console.print("\n(stopped)")
    except PagewireError as error:
        console.print(Text(f"{error}", "red"))
    else:
        history += [turn, ChatMessage("assistant", completion.text)]
