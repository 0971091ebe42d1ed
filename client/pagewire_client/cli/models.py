"""pagewire models: what a service serves, and how it is doing."""

import dataclasses

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pagewire_client.channel import DEFAULT_ADDRESS
from pagewire_client.cli import options
from pagewire_client.cli.connection import connect
from pagewire_client.cli.printing import print_json, writing_output
from pagewire_client.types import Model, ServerInfo


def models(
    address: options.Address = DEFAULT_ADDRESS,
    api_key_file: options.ApiKeyFile = None,
    tls: options.UseTls = False,
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    as_json: options.Json = False,
) -> None:
    """List the served models and the state of the service."""
    access = options.access(api_key_file, tls, tls_ca, tls_cert, tls_key)
    with connect(address, None, access) as client:
        served, info = client.list_models(), client.server_info()
    if as_json:
        data = {"models": [dataclasses.asdict(model) for model in served], "server": dataclasses.asdict(info)}
        print_json(data)
    else:
        with writing_output():
            _print_table(served, info)


def _print_table(served: list[Model], info: ServerInfo) -> None:
    table = Table("model", "architecture", "max length", "vocabulary", "chat")
    for model in served:
        chat = "yes" if model.has_chat_template else "no"
        table.add_row(Text(model.name), Text(model.architecture), f"{model.max_model_len}", f"{model.vocab_size}", chat)
    console = Console(highlight=False, emoji=False)
    console.print(table)
    console.print(
        f"engine {info.state.value}, {info.load.num_running} running, {info.load.num_waiting} waiting, "
        f"{info.load.num_free_blocks} of {info.limits.num_blocks} KV blocks free, version {info.version}",
        markup=False,
    )
