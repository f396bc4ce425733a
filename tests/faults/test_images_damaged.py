"""Images that are truncated, changed or gone: refused at once, said, and CRIU never sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_bed import Agent, agent_on, ask, eventually
from broken_criu import BrokenCriu, broken_criu
from node_bed import NodeBed


@pytest.fixture(scope="module")
def criu(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokenCriu]:
    with broken_criu(node_bed, tmp_path_factory.mktemp("criu")) as found:
        yield found


@pytest.fixture(scope="module")
def agent(node_bed: NodeBed, criu: BrokenCriu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent_on(node_bed, tmp_path_factory.mktemp("damage")) as found:
        yield found


def largest(images: Path) -> Path:
    return max(images.glob("pages-*.img"), key=lambda path: path.stat().st_size)


def truncate(images: Path) -> None:
    file = largest(images)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 4096)


def flip(images: Path) -> None:
    file = largest(images)
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte[0] ^ 1]))


def remove(images: Path) -> None:
    next(images.glob("core-*.img")).unlink()


def add(images: Path) -> None:
    (images / "tty.img").write_bytes(b"planted")


def forge(images: Path) -> None:
    manifest = images.parent / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"size"', b'"size" ', 1))


def lose(images: Path) -> None:
    (images.parent / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, remove, add, forge, lose], ids=lambda d: d.__name__)
def test_damage_is_said_and_never_reaches_criu(agent: Agent, criu: BrokenCriu, damage: Callable[[Path], None]) -> None:
    name = f"damage-{damage.__name__}"
    agent.apply(name)
    ip = agent.wait(name, "Running").ip
    eventually(lambda: agent.ask(name), 30, "it serves")
    agent.order("park", name)
    folder = next((agent.state / f"lib/store/instances/{name}-0").iterdir())
    damage(folder / "images")
    left = sorted(path.name for path in folder.rglob("*"))
    before = criu.calls()
    with pytest.raises(OSError):
        ask(ip, seconds=10)  # a reset, not a wait
    lost = agent.wait(name, "StateLost", 10)
    said = {c.type: c for c in lost.conditions}["StateLost"]
    assert said.status == "True"
    assert "Delete the workload" in said.message
    assert any(event.type == "Warning" and event.message == said.message for event in lost.events)
    assert criu.calls() == before
    assert sorted(path.name for path in folder.rglob("*")) == left
    with agent.client() as client:
        client.delete(name, wait=True)
    assert not folder.exists()
    agent.apply(name)  # anew, as the message advises: it can be parked again
    eventually(lambda: agent.ask(name), 30, "it serves again")
    assert agent.order("park", name).state == "Parked"
    assert agent.ask(name).count > 1
