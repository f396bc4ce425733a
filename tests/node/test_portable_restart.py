"""The machine starts anew: what was parked counts on in a new sandbox; what was awake or in memory is told as lost.

A restart is played: every process of the node's is killed, /run's part of it is emptied, mounts and network namespaces
are gone. What lies on disk stays.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_bed import Agent, agent_on, eventually
from node_bed import NodeBed
from portable_bed import manifest

from kybernate.lab import remains


@pytest.fixture
def agent(node_bed: NodeBed, tmp_path: Path) -> Iterator[Agent]:
    with agent_on(node_bed, tmp_path) as found:
        yield found


def machine_starts_anew(agent: Agent) -> None:
    agent.kill()
    containerd = agent.bed.containerd
    aside = containerd.root.with_name(f"{containerd.root.name}-disk")
    containerd.root.rename(aside)
    remains.remove(containerd.root, containerd.state)
    aside.rename(containerd.root)
    for name in os.listdir(agent.bed.run):
        path = agent.bed.run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    containerd.state.mkdir(mode=0o711)
    containerd.restart()
    agent.start()


def ask(agent: Agent, name: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        with socket.create_connection((agent.get(name).ip, 8080), timeout=60) as connection:
            connection.sendall(b"x\n")
            line = connection.makefile().readline()
            found: dict[str, Any] = json.loads(line) if line else {}
            return found

    return eventually(look, 60, f"{name} answers")


OWN_ADDRESS = """
import threading
own = socket.create_server((socket.gethostbyname(socket.gethostname()), 9090))
threading.Thread(target=lambda: [own.accept()[0].close() for _ in iter(int, 1)], daemon=True).start()
"""


def begin(agent: Agent, name: str) -> None:
    """It listens on its pod's own address too, which is another after a restart."""
    with agent.client() as client:
        client.apply(manifest(name, {"env": [{"name": "EXTRA", "value": OWN_ADDRESS}]}), f"{name}.yaml")
    agent.wait(name, "Running")
    assert ask(agent, name)["count"] == 1


def renewed(agent: Agent, name: str, address: str) -> bool:
    return eventually(lambda: agent.get(name).ip not in ("", address), 60, f"{name} has a new sandbox")


def sandboxes(agent: Agent) -> int:
    kind = 'labels."io.cri-containerd.kind"==sandbox'
    return len(agent.bed.containerd.ctr("containers", "list", "--quiet", kind).split())


def events(agent: Agent, name: str) -> set[str]:
    return {event.reason for event in agent.get(name).events}


def test_what_was_parked_counts_on_after_a_restart_and_after_another(agent: Agent) -> None:
    begin(agent, "keep")
    before = ask(agent, "keep")
    for restarts in (1, 2):
        address = agent.order("park", "keep").ip
        machine_starts_anew(agent)
        found = agent.wait("keep", "Parked")
        assert renewed(agent, "keep", address)
        assert "StateLost" not in {condition.type for condition in found.conditions}
        now = ask(agent, "keep")
        assert now["count"] == before["count"] + restarts
        counts = [str(number) for number in range(1, now["count"] + 1)]
        assert [now[name] for name in ("layer", "data", "shm")] == [counts, counts, counts]
        assert (now["page"], now["link"], now["removed"]) == (now["count"], "not open", True)
        assert "Rescued" in events(agent, "keep")
        with socket.create_connection((agent.get("keep").ip, 9090), 30) as own:
            assert own.recv(1) == b"", "it was accepted, and closed"
    agent.order("park", "keep")
    assert ask(agent, "keep")["count"] == before["count"] + 3, "and in place as ever"
    work = agent.state / "lib" / "work" / "keep-0" / "restore"
    eventually(lambda: not (work / "images").exists(), 30, "no links keep its old images on the disk")
    eventually(lambda: list(agent.state.glob("lib/**/pages-1.img")) == [], 30, "its images are gone")


def test_an_agent_that_dies_in_the_midst_loses_nothing(agent: Agent) -> None:
    begin(agent, "keep")
    agent.order("park", "keep")
    machine_starts_anew(agent)
    for _ in range(3):  # at whatever it is
        agent.kill()
        agent.start()
    agent.wait("keep", "Parked")
    now = ask(agent, "keep")
    assert (now["count"], now["layer"], now["data"], now["shm"]) == (2, ["1", "2"], ["1", "2"], ["1", "2"])
    eventually(lambda: sandboxes(agent) == 1, 10, "one sandbox is left")


def test_what_was_in_memory_only_is_told_as_lost(agent: Agent) -> None:
    begin(agent, "keep")
    agent.order("suspend", "keep")
    machine_starts_anew(agent)
    agent.wait("keep", "StateLost")


def test_without_its_layer_its_state_is_lost_and_not_begun_anew(agent: Agent) -> None:
    begin(agent, "keep")
    agent.order("park", "keep")
    agent.kill()
    layers = agent.bed.containerd.root / "data" / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    for layer in layers.glob("*/fs/var/kept"):
        shutil.rmtree(layer.parent.parent.parent)
    machine_starts_anew(agent)
    found = agent.wait("keep", "StateLost")
    assert any("writable layer" in condition.message for condition in found.conditions)
