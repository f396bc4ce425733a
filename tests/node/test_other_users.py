"""nginx, whose workers are another user's, sleeps as it comes.

CRIU dumps processes that are not root's only with CAP_SYS_RESOURCE. Where the machine lacks it, the product refuses
to park them, and the other tests here run CRIU with a stand-in for what the capability allows.
"""

from __future__ import annotations

import http.client
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_bed import Agent, agent_on
from kybernate_shim.install import DEFAULT_PATH, install
from node_bed import NodeBed
from programs import build
from programs.bed import PORT, Program, Said, called, running, sleeps_and_wakes
from standin import sys_resource

from kybernate.errors import RefusedError


def status(text: str) -> Said:
    """Of stub_status: `Active connections: 1 / server accepts handled requests / 5 5 7 / Reading: 0 ...`."""
    lines = text.splitlines()
    return Said(int(lines[2].split()[2]), lines[1].split())


NGINX = Program("nginx", build.nginx, lambda said: said == "server accepts handled requests", "/count", status)


@pytest.fixture
def agent(node_bed: NodeBed, tmp_path: Path) -> Iterator[Agent]:
    """An agent on a node whose CRIU can dump any user's processes."""
    if not sys_resource.NEEDED:
        with agent_on(node_bed, tmp_path / "agent") as found:
            yield found
        return
    runc = Path(shutil.which("runc") or "/usr/sbin/runc")
    standin = sys_resource.folder(shutil.which("criu") or "/usr/sbin/criu")
    install(node_bed.prefix, node_bed.run, runc, path=f"{standin}:{DEFAULT_PATH}")
    try:
        with agent_on(node_bed, tmp_path / "agent", "criu: {assume_sys_resource: true}\n") as found:
            yield found
    finally:
        install(node_bed.prefix, node_bed.run, runc)


def test_it_sleeps_as_it_comes_and_wakes_with_its_state(node_bed: NodeBed, agent: Agent) -> None:
    with running(node_bed, agent, NGINX) as ip:
        assert sleeps_and_wakes(agent, ip, NGINX) == ["RAM", "NVME", "NVME"]


@pytest.mark.parametrize("verb", ["suspend", "park"])
def test_a_download_under_way_goes_on(node_bed: NodeBed, agent: Agent, verb: str) -> None:
    with running(node_bed, agent, NGINX) as ip, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        connection.settimeout(60)
        connection.connect((ip, PORT))
        connection.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        begun = answer.read(1 << 20)
        agent.order(verb, NGINX.name)
        called(ip, NGINX)  # another request wakes it
        assert begun + answer.read() == build.LARGE


if sys_resource.NEEDED:

    def test_without_the_capability_it_is_suspended_but_not_parked(node_bed: NodeBed, tmp_path: Path) -> None:
        with agent_on(node_bed, tmp_path / "agent") as agent, running(node_bed, agent, NGINX) as ip:
            before = called(ip, NGINX)
            with pytest.raises(RefusedError, match="CAP_SYS_RESOURCE"):
                agent.order("park", NGINX.name)
            (condition,) = [c for c in agent.get(NGINX.name).conditions if c.type == "NotParkable"]
            assert (condition.status, condition.reason) == ("True", "OtherUser")
            assert "CAP_SYS_RESOURCE" in condition.message
            assert agent.order("suspend", NGINX.name).state == "Suspended"
            assert called(ip, NGINX).count > before.count
