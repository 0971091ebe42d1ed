"""Which options do several benchmarks share?"""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="GGUF file, safetensors directory, Hub id, demo or dummy:NAME (random weights).")
]
NumRequests = Annotated[int | None, typer.Option("--num-requests", "-r", min=1, help="Requests in all.")]
InputLen = Annotated[int, typer.Option("--input-len", min=1, help="Tokens in each prompt.")]
OutputLen = Annotated[int, typer.Option("--output-len", min=1, help="Tokens in each answer; EOS is ignored.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of prompts and sampling.")]
TraceFile = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Write what every process did as a Chrome trace, for Perfetto."),
]
