"""The CLI against an API server that goes away: words, and no traceback."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from kybernate.agentapi._pb import agent_pb2 as pb
from kybernate.api.gpuinstance import GpuInstance, InstancePolicy, InstanceSpec, InstanceStatus
from kybernate.api.objects import Metadata
from kybernate.cli.cluster import ClusterClient, ClusterDeadlineError
from kybernate.cli.commands.apply import FailedError, NotRunningError, _wait_until_running
from kybernate.cli.message import message_of
from kybernate.kube.credentials import Access, Credentials
from kybernate.kube.errors import ForbiddenError, UnreachableError

INSTANCE = {
    "metadata": {"name": "chat-0", "namespace": "default"},
    "spec": {"pod": "chat-0", "policy": {"container": "app"}},
}


LIST = {"metadata": {"resourceVersion": "7"}, "items": [INSTANCE]}
FORBIDDEN = {"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "not in secret"}


class Server(BaseHTTPRequestHandler):
    """It knows one instance, and breaks off in the midst of its pod's log. Who watches is interrupted. Of the namespace
    `secret` it tells nothing."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        logs, status = "/log?" in self.path, 200
        if "/secret/" in self.path:
            status, body = 403, msgspec.json.encode(FORBIDDEN)
        elif "watch=" in self.path:
            os.kill(os.getpid(), signal.SIGINT)
            self.rfile.read(1)  # until the client has gone
            return
        elif "/gpuinstances?" in self.path:
            body = msgspec.json.encode(LIST)
        else:
            body = b"a line\n" if logs else msgspec.json.encode(INSTANCE)
        self.send_response(status)
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
def client(login: None) -> Iterator[ClusterClient]:
    with ClusterClient(None, None, "default") as made:
        yield made


@pytest.fixture
def login(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def credentials(*_: object, **__: object) -> Credentials:
        async def load() -> Access:
            return Access(server, None)

        return Credentials(load, await load())

    monkeypatch.setattr("kybernate.cli.cluster.load_credentials", credentials)


def test_logs_that_break_off_are_shown_and_then_said(client: ClusterClient) -> None:
    chunks = client.logs("chat-0")
    assert next(chunks).data == b"a line\n"
    with pytest.raises(UnreachableError, match="chat-0/log"):
        next(chunks)


def test_what_may_not_be_watched_is_said(login: None) -> None:
    """A watch would try again for ever."""
    with ClusterClient(None, None, "secret") as client, pytest.raises(ForbiddenError, match="not in secret"):
        next(client.watch())


def test_an_interrupt_is_nothing_else(client: ClusterClient) -> None:
    """Not an error about a generator that is still running."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        events = client.watch()
        assert [next(events).type, next(events).type] == [pb.WatchEvent.ADDED, pb.WatchEvent.SYNCED]
        with pytest.raises(KeyboardInterrupt):
            next(events)
    finally:
        signal.signal(signal.SIGINT, before)


ADDED, MODIFIED, DELETED = pb.WatchEvent.ADDED, pb.WatchEvent.MODIFIED, pb.WatchEvent.DELETED


class Told:
    """A client that tells these changes, and then nothing within the deadline."""

    def __init__(self, *changes: tuple[int, bool, str]) -> None:
        self._changes = changes

    def watch(self, name: str, *, deadline_seconds: float) -> Iterator[pb.WatchEvent]:
        for kind, leaving, state in self._changes:
            instance = GpuInstance(
                metadata=Metadata(name=f"{name}-0", deletion_timestamp="2026-01-01T00:00:00Z" if leaving else None),
                spec=InstanceSpec(policy=InstancePolicy(container="app")),
                status=InstanceStatus(state=state),
            )
            yield pb.WatchEvent(type=kind, instance=message_of(instance))  # type: ignore[arg-type]
        raise ClusterDeadlineError(what=name, seconds=deadline_seconds)


def test_an_earlier_workloads_instance_is_not_waited_for() -> None:
    """It sleeps still, while it is being deleted; then the new one comes."""
    earlier = [(ADDED, True, "Parked"), (DELETED, True, "Parked")]
    with pytest.raises(NotRunningError):
        _wait_until_running(Told(*earlier), "chat", 1.0)  # type: ignore[arg-type]
    _wait_until_running(Told(*earlier, (ADDED, False, ""), (MODIFIED, False, "Running")), "chat", 1.0)  # type: ignore[arg-type]


def test_an_instance_that_is_deleted_meanwhile_is_a_failure() -> None:
    with pytest.raises(FailedError):
        _wait_until_running(Told((ADDED, False, ""), (DELETED, True, "")), "chat", 1.0)  # type: ignore[arg-type]
