"""Which options do several commands share?"""

from pathlib import Path
from typing import Annotated

import typer

from pagewire_client.access import Tls, read_api_key
from pagewire_client.cli.connection import AccessOptions
from pagewire_client.params import SamplingParams

Address = Annotated[
    str,
    typer.Option(
        "--address",
        "-a",
        envvar="PAGEWIRE_ADDRESS",
        help="Service to use: HOST:PORT or unix:/path; several gateways of one service with commas between them.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", help="File with the API key. Default: the key in PAGEWIRE_API_KEY, if it is set."),
]
UseTls = Annotated[
    bool, typer.Option("--tls", envvar="PAGEWIRE_TLS", help="Connect with TLS; the other flags imply it.")
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca", envvar="PAGEWIRE_TLS_CA", help="PEM file of authorities to trust. Default: well-known ones."
    ),
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", envvar="PAGEWIRE_TLS_CERT", help="PEM certificate to show, for mTLS.")
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", envvar="PAGEWIRE_TLS_KEY", help="Its private key.")]
Local = Annotated[
    str | None,
    typer.Option("--local", metavar="MODEL", help="Start a private service of this model instead, for this command."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", "-n", min=1, help="Most tokens to produce.")]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", help="0 is greedy. Server's default: 1.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Keep the likeliest tokens up to this probability.")]
TopK = Annotated[int | None, typer.Option("--top-k", min=0, help="Keep this many of the likeliest tokens; 0: all.")]
MinP = Annotated[float | None, typer.Option("--min-p", help="Drop tokens less likely than this part of the best.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="The same seed gives the same answer.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the answer; repeatable.")]


def access(
    api_key_file: Path | None, use_tls: bool, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None
) -> AccessOptions:
    """Put the access options together.

    Raises:
        BadParameter: they do not fit.
        PagewireError: the key cannot be read.
    """
    try:
        tls = Tls(tls_ca, tls_cert, tls_key) if use_tls or tls_ca or tls_cert or tls_key else None
    except ValueError as error:
        raise typer.BadParameter(f"--tls-cert and --tls-key: {error}") from error
    return AccessOptions(api_key=read_api_key(api_key_file) if api_key_file is not None else None, tls=tls)


def sampling_params(
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    seed: int | None,
    stop: list[str] | None,
) -> SamplingParams:
    """Put the sampling options together.

    Raises:
        BadParameter: a value is impossible.
    """
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
            stop=stop or (),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
