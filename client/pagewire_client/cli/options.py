"""Which options do several commands share?"""

from typing import Annotated

import typer

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
