"""pagewire keys: makes secrets for a service, by way of the program that uses them."""

import importlib.util
import os
import sys

import typer

from pagewire_client.errors import PagewireError

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

_NEW = "scheduler_service.gateway.auth"
_CURVE = "scheduler_service.core.curve_keys"


def keys_new(context: typer.Context) -> None:
    """Make an API key for --name NAME: prints it once, and adds its hash to --file FILE. --help lists its limits."""
    _become(_NEW, context.args, "msgspec")


def keys_curve(context: typer.Context) -> None:
    """Make the keys in --dir DIR with which gateways and workers on other machines reach the scheduler."""
    _become(_CURVE, context.args, "zmq")


def _become(module: str, arguments: list[str], needed: str) -> None:
    if importlib.util.find_spec(needed) is None:
        raise PagewireError(f"the Python package {needed} is not installed: pip install 'pagewire[all]'")
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 (no shell is wanted)
