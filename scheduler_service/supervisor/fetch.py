"""Fetches a model from the Hugging Face Hub and links to it: python -m scheduler_service.supervisor.fetch --help."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.hub import fetch_file, fetch_snapshot
from scheduler_service.supervisor.output import Output


def main(arguments: list[str] | None = None) -> int:
    """Fetch what is not there yet; gives the exit status."""
    options = _parser().parse_args(arguments)
    output = Output(Console(stderr=True, markup=False, emoji=False))
    try:
        if options.file is not None:
            path = fetch_file(options.repo, options.file, output.progress, options.revision)
        else:
            path = fetch_snapshot(
                options.repo, output.progress, options.revision, with_weights=not options.tokenizer_only
            )
        _link(options.link, path)
    except (ServiceError, OSError) as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    print(f"fetch: {options.link} is {path}", file=sys.stderr)
    return 0


def _link(link: Path, target: Path) -> None:
    """Have a symbolic link lead to a path, whether it was there before or not."""
    fresh = link.with_name(f"{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scheduler_service.supervisor.fetch",
        description="Fetches a model from the Hugging Face Hub into its cache (HF_HOME), and links to it.",
    )
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="repository on the Hub")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit; default: the main branch")
    parser.add_argument("--file", metavar="NAME", help="one GGUF file of it; default: its safetensors files")
    parser.add_argument("--tokenizer-only", action="store_true", help="of safetensors models: leave the weights out")
    parser.add_argument("--link", type=Path, required=True, metavar="PATH", help="symbolic link to make to the model")
    return parser


if __name__ == "__main__":
    sys.exit(main())
