"""Does the chart's chaos job delete pods by turns, wait for them, and see what goes wrong with streams?"""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.fakes.chart import CHART, container, find
from tests.fakes.patience import PATIENCE_S

PREFIX = "/api/v1/namespaces/serving/pods"

# Stands in for the client library, which has tests of its own; the second answer to one prompt may be another.
CLIENT = """
import os
class PagewireError(Exception): pass
class RetryPolicy:
    def __init__(self, **_): pass
class SamplingParams:
    def __init__(self, **_): pass
class Completion:
    def __init__(self, token_ids): self.token_ids = token_ids
class Client:
    def __init__(self, address, retry):
        assert address == "gateway:50051"
        self.num_calls = 0
    def generate(self, prompt, params):
        self.num_calls += 1
        if os.environ["FAULT"] == "error" and self.num_calls > 1:
            raise PagewireError("UNAVAILABLE")
        return Completion((1, 2, self.num_calls if os.environ["FAULT"] == "tokens" else 3))
"""


@pytest.fixture
def cluster():
    """An API server with two gateways and an engine; a deleted pod is there again, not ready at first."""
    deleted, pods = [], {"engine-0": 0, "gateway-a": 0, "gateway-b": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            (selector,) = parse_qs(urlsplit(self.path).query)["labelSelector"]
            component = selector.rpartition("=")[2]
            assert selector.startswith("app.kubernetes.io/instance=llm,")
            assert self.headers["Authorization"] == "Bearer secret"
            self._answer({"items": [self._pod(name) for name in pods if name.startswith(component)]})

        def do_DELETE(self):
            name = unquote(self.path.removeprefix(f"{PREFIX}/"))
            deleted.append(name)
            pods[name] = 1
            self._answer({})

        def log_message(self, *_):
            pass

        def _pod(self, name):
            is_ready, pods[name] = pods[name] == 0, max(0, pods[name] - 1)
            conditions = [{"type": "Ready", "status": str(is_ready)}]
            return {"metadata": {"name": name}, "status": {"conditions": conditions}}

        def _answer(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", deleted
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("fault", "status", "said"), [("", 0, "0 wrong"), ("error", 1, "failed: UNAVAILABLE"),
                                                       ("tokens", 1, "other tokens")])  # fmt: skip
def test_every_kind_of_pod_is_deleted_and_wrong_streams_are_told(cluster, tmp_path, fault, status, said):
    api, deleted = cluster
    (tmp_path / "token").write_text("secret")
    (tmp_path / "pagewire_client.py").write_text(CLIENT)
    (tmp_path / "chaos.py").write_text((CHART / "files" / "chaos.py").read_text())
    pod = find("Job", "chaos", "autoscaled")["spec"]["template"]
    flags = [
        *container(pod, "chaos")["args"],
        f"--kills={1 if fault else 4}",
        "--streams=2",
        f"--api={api}",
        f"--account={tmp_path}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PAGEWIRE_ADDRESS": "gateway:50051", "FAULT": fault}
    done = subprocess.run(
        [sys.executable, tmp_path / "chaos.py", *flags], capture_output=True, text=True, env=environment,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert said in done.stdout
    assert deleted == ["engine-0", "gateway-a", "engine-0", "gateway-b"][: 1 if fault else 4]
