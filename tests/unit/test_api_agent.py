"""The agent's API: committed stubs, the client, and errors across the wire (the server is agent_standin's)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_standin import Server

from kybernate.agentapi import generate
from kybernate.agentapi.client import AgentClient, AgentDeadlineError, NoAgentError
from kybernate.errors import InvalidError, KybernateError, NotFoundError, RefusedError, StateLostError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("a-path-that-is-far-too-long-for-a-unix-socket" + "-x" * 40)
    server = Server(folder / "agent.sock")
    assert len(str(server.path)) > 107
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Iterator[AgentClient]:
    with AgentClient(server.path) as client:
        yield client


def test_committed_stubs_are_what_the_proto_generates(tmp_path: Path) -> None:
    generate.generate(tmp_path)
    committed = generate.PACKAGE_ROOT / generate.VIRTUAL_FOLDER
    made = {path.name: path.read_text() for path in (tmp_path / generate.VIRTUAL_FOLDER).iterdir()}
    assert made == {path.name: path.read_text() for path in committed.glob("agent_pb2*")}


def test_calls_answer_over_a_socket_whose_path_is_too_long_for_the_kernel(client: AgentClient) -> None:
    assert [instance.name for instance in client.instances()] == ["chat-0", "embed-0"]
    assert client.get("chat").stored_bytes == 71303168
    assert client.exec_target("chat") == ["env", "IN_CONTAINER=yes"]
    assert [event.type for event in client.watch()] == [1, 4, 2, 3]


@pytest.mark.parametrize(
    ("call", "kind", "name", "exit_code"),
    [
        (lambda c: c.get("nobody"), NotFoundError, "NotFoundError", 4),
        (lambda c: c.order("suspend", "embed"), RefusedError, "QueueHeldError", 21),
        (lambda c: c.order("resume", "lost"), StateLostError, "StateLostError", 24),
        (lambda c: c.apply("wrong", "a.yaml"), InvalidError, "InvalidError", 2),
        (lambda c: list(c.logs("nobody")), NotFoundError, "NotFoundError", 4),
    ],
    ids=["get", "suspend", "resume", "apply", "logs"],
)
def test_the_agents_error_is_raised_here_with_its_name_and_exit_code(
    client: AgentClient, call: Callable[[AgentClient], object], kind: type[KybernateError], name: str, exit_code: int
) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    assert (type(caught.value).__name__, caught.value.exit_code) == (name, exit_code)


def test_a_long_error_message_crosses_cut_not_refused(client: AgentClient) -> None:
    with pytest.raises(InvalidError) as caught:
        client.apply("wrong", "ä" * 20000)
    assert str(caught.value).endswith(" ...")


def test_an_agent_that_does_not_answer_is_a_deadline(client: AgentClient) -> None:
    with pytest.raises(AgentDeadlineError, match=r"did not answer Park within 0\.2 s"):
        client.order("park", "hang", deadline_seconds=0.2)


def test_a_watch_ends_at_its_deadline(client: AgentClient) -> None:
    with pytest.raises(AgentDeadlineError, match="did not answer Watch"):
        list(client.watch("hang", deadline_seconds=0.2))


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda path: None, "No such file or directory. Start it"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(path), "Connection refused. It has ended"),
        (lambda path: Path(path).write_text(""), "Connection refused"),
    ],
    ids=["no socket", "nobody listens", "not a socket"],
)
def test_no_agent_says_which_socket_and_what_to_do(tmp_path: Path, prepare: Callable[[str], object], says: str) -> None:
    prepare(f"{tmp_path}/agent.sock")
    with pytest.raises(NoAgentError, match=says) as caught:
        AgentClient(tmp_path / "agent.sock")
    assert str(tmp_path / "agent.sock") in str(caught.value)
    assert caught.value.exit_code == 3


def leads_to(link: str) -> str:
    """Empty for one that is gone: the listing's own descriptor, and what other threads close meanwhile."""
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def test_a_closed_client_leaves_no_descriptor(server: Server) -> None:
    def ours() -> int:
        return sum(leads_to(f"/proc/self/fd/{fd}") == str(server.path.parent) for fd in os.listdir("/proc/self/fd"))

    before = ours()
    with AgentClient(server.path):
        assert ours() == before + 1
    assert ours() == before
