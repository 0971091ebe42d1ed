"""pagewire generate: one prompt in, its answer out."""

import dataclasses
import sys
from typing import Annotated

import typer

from pagewire_client.channel import DEFAULT_ADDRESS
from pagewire_client.checks import check_text
from pagewire_client.cli import options
from pagewire_client.cli.connection import connect
from pagewire_client.cli.printing import print_json, print_stream
from pagewire_client.errors import PagewireError
from pagewire_client.prompts import ChatMessage, Prompt


def generate(
    prompt: Annotated[str, typer.Argument(help="What to complete; - reads standard input.")],
    address: options.Address = DEFAULT_ADDRESS,
    local: options.Local = None,
    api_key_file: options.ApiKeyFile = None,
    tls: options.UseTls = False,
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text itself, without the chat template.")] = False,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    as_json: options.Json = False,
) -> None:
    """Answer one prompt, streaming the text as it is made."""
    params = options.sampling_params(max_tokens, temperature, top_p, top_k, min_p, seed, stop)
    text = _read_stdin() if prompt == "-" else prompt
    check_text(text, "prompt")
    access = options.access(api_key_file, tls, tls_ca, tls_cert, tls_key)
    with connect(address, local, access) as client:
        as_chat = not raw and client.list_models()[0].has_chat_template
        full_prompt: Prompt = [ChatMessage("user", text)] if as_chat else text
        with client.stream(full_prompt, params) as stream:
            if not as_json:
                print_stream(stream)
                return
            completion = stream.collect()
    print_json(dataclasses.asdict(completion))


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise PagewireError(f"standard input is not {error.encoding} text: {error.reason}; convert it first") from error
