"""The CLI against an API server that goes away: words, and no traceback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from kybernate.cli.cluster import ClusterClient
from kybernate.kube.credentials import Access, Credentials
from kybernate.kube.errors import UnreachableError

INSTANCE = {
    "metadata": {"name": "chat-0", "namespace": "default"},
    "spec": {"pod": "chat-0", "policy": {"container": "app"}},
}


class Server(BaseHTTPRequestHandler):
    """It knows one instance, and breaks off in the midst of its pod's log."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        logs = "/log?" in self.path
        body = b"a line\n" if logs else msgspec.json.encode(INSTANCE)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 100 * logs))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = logs

    def log_message(self, format: str, *args: object) -> None:
        """Not on the tests' stderr."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterClient]:
    async def credentials(*_: object, **__: object) -> Credentials:
        async def load() -> Access:
            return Access(server, None)

        return Credentials(load, await load())

    monkeypatch.setattr("kybernate.cli.cluster.load_credentials", credentials)
    with ClusterClient(None, None, "default") as made:
        yield made


def test_logs_that_break_off_are_shown_and_then_said(client: ClusterClient) -> None:
    chunks = client.logs("chat-0")
    assert next(chunks).data == b"a line\n"
    with pytest.raises(UnreachableError, match="chat-0/log"):
        next(chunks)
