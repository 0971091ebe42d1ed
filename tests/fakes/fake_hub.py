"""A Hub with one repository, answering the few requests that a download makes."""

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

REPO = "org/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(files: dict[str, bytes]):
    """Serve the files as REPO; gives the endpoint and the list of paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.split("?")[0]
            if path.startswith(f"/api/models/{REPO}/tree/"):
                self._answer_json(
                    [{"type": "file", "path": n, "size": len(c), "oid": oid(c)} for n, c in files.items()]
                )
            elif path.startswith(f"/api/models/{REPO}"):
                siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                self._answer_json({"id": REPO, "sha": COMMIT, "siblings": siblings})
            elif path.removeprefix(f"/{REPO}/resolve/").partition("/")[2] in files:
                self._answer_file(files[path.removeprefix(f"/{REPO}/resolve/").partition("/")[2]])
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer_json(self, value: object) -> None:
            self._answer(json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _answer_file(self, content: bytes) -> None:
            self._answer(content, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

        def _answer(self, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def oid(content: bytes) -> str:
    """Git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
