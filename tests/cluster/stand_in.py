"""A cheap container to try the cluster with: python -m tests.cluster.stand_in --port 8086 --state /state

Its health is what the folder says: it is ready while there is no file `unready`, and live while there is none `hung`.
What it goes through is written to the file `story`. A connection to --echo gets back what it sends.
"""

import argparse
import asyncio
import os
import signal
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

_POLL_S = 0.05


def main() -> None:
    """Run until SIGTERM, which --stubborn disregards."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--echo", type=int)
    parser.add_argument("--stubborn", action="store_true")
    asyncio.run(_serve(parser.parse_args()))


async def _serve(options: argparse.Namespace) -> None:
    def tell(text: str) -> None:
        with (options.state / "story").open("a") as story:
            story.write(f"{text}\n")

    stop = asyncio.Event()

    def told_to_stop() -> None:
        tell("SIGTERM")
        if not options.stubborn:
            stop.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_stop)
    servicer = health.aio.HealthServicer()
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"0.0.0.0:{options.port}")
    await server.start()
    echo = None if options.echo is None else await asyncio.start_server(_echo, "0.0.0.0", options.echo)
    tell(f"started {os.environ.get('WHO', '')} {os.getpid()} {os.getuid()}")
    while not stop.is_set():
        for service, bad_news in (("", "unready"), ("liveness", "hung")):
            well = not (options.state / bad_news).exists()
            states = health_pb2.HealthCheckResponse
            await servicer.set(service, states.SERVING if well else states.NOT_SERVING)
        await asyncio.sleep(_POLL_S)
    if echo is not None:
        echo.close()
    await server.stop(None)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


if __name__ == "__main__":
    main()
