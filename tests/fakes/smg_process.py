"""An smg gateway, which is not ours, in front of a service of ours."""

import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tests.fakes.free_port import free_port
from tests.fakes.patience import PATIENCE_S

_COMMAND = Path(sys.executable).parent / "smg"


class SmgProcess:
    """Runs from entering the context, after which requests can be sent, to leaving it."""

    def __init__(self, worker_address: str, log: Path, *flags: str) -> None:
        self._worker_address = worker_address
        self._flags = flags
        self._log = log
        self._stderr: IO[bytes]
        self._process: subprocess.Popen[bytes]
        self.port = free_port(2)

    def __enter__(self) -> "SmgProcess":
        command = [str(_COMMAND), "launch", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--prometheus-port", str(self.port + 1), "--worker-urls", f"grpc://{self._worker_address}"]
        command += ["--policy", "cache_aware", "--log-level", "debug", *self._flags]
        self._stderr = self._log.open("wb")
        self._process = subprocess.Popen(command, stdout=self._stderr, stderr=subprocess.STDOUT)
        self._wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)
        self._stderr.close()

    def post(self, path: str, **fields: Any) -> http.client.HTTPResponse:
        """Send a request; its response is to be read, or closed, by the caller."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("POST", path, json.dumps(fields), {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read().decode()
        return response

    def log_text(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not self._is_ready():
            assert self._process.poll() is None, self.log_text()
            assert time.monotonic() < deadline_s, self.log_text()
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/readiness")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def read_events(response: http.client.HTTPResponse) -> list[Any]:
    """The JSON of all server-sent events up to [DONE]."""
    lines = [line.decode().removeprefix("data: ").strip() for line in response if line.startswith(b"data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
