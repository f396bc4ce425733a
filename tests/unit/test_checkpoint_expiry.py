"""A GpuCheckpoint's bytes go for good when it expires: not by a clock that is wrong for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kybernate_agent.cluster import checkpoints
from kybernate_agent.cluster.checkpoints import Checkpoints

from kybernate.api.gpucheckpoint import CheckpointSource, CheckpointSpec, CheckpointStatus, GpuCheckpoint
from kybernate.api.objects import Metadata
from kybernate.api.quantity import Duration
from kybernate.store import FolderStore, Manifest

MADE = {"namespace": "team", "checkpoint": "warm", "container": "app", "created_at": 1000.0}
NAME = "checkpoint-u1"

EXPIRIES = [
    ("it has passed", [110.0, 110.0], 2),
    ("it has not", [90.0, 99.0, 101.0, 102.0], 4),
    ("the clock was ahead when the agent started", [5000.0, 50.0, 101.0, 102.0], 4),
    ("and again", [5000.0, 50.0, 5000.0, 50.0, 120.0, 130.0], 6),
]


@pytest.mark.parametrize(("name", "machine", "asked"), EXPIRIES, ids=[name for name, *_ in EXPIRIES])
async def test_bytes_go_when_a_clock_has_said_so_twice(
    monkeypatch: pytest.MonkeyPatch, name: str, machine: list[float], asked: int
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    told: Iterator[float] = iter(machine)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(time=lambda: next(told)))
    monkeypatch.setattr(checkpoints, "asyncio", SimpleNamespace(sleep=sleep))
    await checkpoints._passed(100.0)
    assert len(pauses) == asked - 1
    assert list(told) == []
    assert all(0 < pause <= checkpoints.SURE_SECONDS for pause in pauses)
    assert pauses[-1] == checkpoints.SURE_SECONDS


def committed(store: FolderStore) -> Manifest:
    staging = store.stage(NAME, 1, 0)
    (staging.images / "pages-1.img").write_bytes(b"state")
    return store.commit(staging, MADE)


@pytest.mark.parametrize("here", [True, False], ids=["made by this agent", "found by it"])
async def test_only_one_that_was_found_asks_a_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    """How long ago this agent made one it knows by itself."""
    store, waited, said = FolderStore(tmp_path / "store", b"k" * 32, 0), list[tuple[str, float]](), list[str]()

    async def sleep(seconds: float) -> None:
        waited.append(("slept", seconds))

    async def passed(at: float) -> None:
        waited.append(("asked", at))

    async def made(checkpoint: GpuCheckpoint, found: Manifest | None) -> Manifest:
        assert found is None
        return await asyncio.to_thread(committed, store)

    async def say(checkpoint: GpuCheckpoint, status: CheckpointStatus, kind: str) -> None:
        said.append(str(status.phase))

    if not here:
        committed(store)
    node: Any = SimpleNamespace(services=SimpleNamespace(store=store))
    nobody: Any = None
    following = Checkpoints(node, nobody, nobody, "n1", nobody)
    monkeypatch.setattr(following, "_made", made)
    monkeypatch.setattr(following, "_say", say)
    monkeypatch.setattr(checkpoints, "_passed", passed)
    monkeypatch.setattr(checkpoints, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    one = GpuCheckpoint(
        metadata=Metadata(name="warm", namespace="team", uid="u1"),
        spec=CheckpointSpec(source=CheckpointSource(instance="chat-0"), expires_after=Duration(60)),
        status=CheckpointStatus(phase="Pending" if here else "Ready", node="n1"),
    )
    await following._live(one)
    assert waited == [("slept", 60.0) if here else ("asked", 1060.0)]
    assert (said, store.manifests(NAME)) == (["Expired"], [])
