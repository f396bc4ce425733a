"""A GpuCheckpoint that is deleted goes for good, also where the disk refuses at first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kybernate_agent.cluster.checkpoints import Checkpoints

from kybernate.api.gpucheckpoint import GpuCheckpoint
from kybernate.api.objects import decode, encode
from kybernate.kube.cache import Change, key_of
from kybernate.store import FolderStore

FINALIZER = "kybernate.io/state"


class Refusing(FolderStore):
    """A disk that takes nothing away until the third time."""

    tries = 0

    def forget(self, instance: str) -> None:
        self.tries += 1
        if self.tries < 3:
            raise OSError(5, "Input/output error")
        super().forget(instance)


class Written:
    """Stands for the API server: it has the object, and hears what becomes of it."""

    def __init__(self, held: GpuCheckpoint) -> None:
        self.held = held
        self.finalizers: list[str] | None = None
        self.heard = asyncio.Event()

    async def get(self, *_: Any) -> GpuCheckpoint:
        return self.held

    async def merge_patch(self, *told: Any, **_: Any) -> None:
        self.finalizers = told[3]["metadata"]["finalizers"]
        self.heard.set()


def deleted() -> GpuCheckpoint:
    meta = {
        "name": "warm", "namespace": "team", "uid": "u1", "finalizers": [FINALIZER],
        "deletionTimestamp": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return decode(encode({"metadata": meta, "spec": {"source": {"instance": "chat-0"}}}), GpuCheckpoint)


async def test_its_finalizer_stays_as_long_as_its_bytes_and_no_longer(tmp_path: Path) -> None:
    store = Refusing(tmp_path / "store", b"k" * 32, 0)
    staging = store.stage("checkpoint-u1", 1, 0)
    (staging.images / "pages-1.img").write_bytes(b"state")
    store.commit(staging, {})
    node: Any = SimpleNamespace(services=SimpleNamespace(store=store))
    nobody: Any = None
    checkpoint = deleted()
    written: Any = Written(checkpoint)
    checkpoints = Checkpoints(node, written, nobody, "n1", nobody)
    checkpoints._changed(Change(key_of(checkpoint), None, checkpoint))
    await asyncio.wait_for(written.heard.wait(), 30)
    assert written.finalizers == []
    assert store.tries == 3
    assert store.manifests("checkpoint-u1") == []
