"""No room in the store: refused before the dump where it can be known, undone where it shows in the midst of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_bed import Agent, agent_on, eventually
from broken_criu import broken_criu
from node_bed import NodeBed

from kybernate.errors import KybernateError


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The agent's state folder, with 64 MiB of its own for the store."""
    state = tmp_path_factory.mktemp("full")
    folder = state / "lib/store"
    folder.mkdir(parents=True, mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "none", str(folder)], check=True, timeout=10)
    try:
        yield state
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, timeout=10)


def started(agent: Agent, name: str, mib: int) -> str:
    agent.apply(name, env={"MIB": str(mib)})
    agent.wait(name, "Running")
    return eventually(lambda: agent.ask(name).born, 30, "it serves")


def test_a_park_without_room_is_refused_and_the_application_answers(node_bed: NodeBed, store: Path) -> None:
    with agent_on(node_bed, store, "store_reserve_bytes: 0\n") as agent:
        born = started(agent, "large", 96)
        with pytest.raises(KybernateError, match="Free space"):
            agent.order("park", "large")
        found = agent.get("large")
        assert (found.state, found.stored_bytes) == ("Suspended", 0)
        assert any("Free space" in c.message for c in found.conditions if c.type == "NotParkable")
        assert agent.ask("large").born == born


def test_a_disk_that_fills_during_the_dump_leaves_the_application(
    node_bed: NodeBed, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = store / "lib/store"
    with (
        broken_criu(node_bed, tmp_path_factory.mktemp("criu")) as criu,
        agent_on(node_bed, store, "store_reserve_bytes: 0\n") as agent,
    ):
        born = started(agent, "small", 16)
        criu.fills(folder / "other")  # after the agent's look at the room, before CRIU writes
        with pytest.raises(KybernateError, match="disk is full"):
            agent.order("park", "small")
        assert agent.get("small").state == "Suspended"
        assert agent.ask("small").born == born
        criu.mode("work")
        (folder / "other").unlink()
        assert agent.order("park", "small").state == "Parked"
        assert agent.ask("small").born == born
        assert list((folder / "staging").iterdir()) == []
