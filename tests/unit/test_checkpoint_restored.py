"""An instance begins with a checkpoint of its own namespace and container, whole and of the same image, or not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kybernate_agent.actor import Actor
from kybernate_agent.cluster import copies, restored
from kybernate_agent.cluster.starter import KubeletStarter
from kybernate_agent.config import AgentConfig
from kybernate_agent.instance import Member, Phase, Record, Wanted
from kybernate_agent.journal import Journal
from kybernate_agent.services import Services

from kybernate.errors import KybernateError
from kybernate.store import FolderStore, ImageDamagedError, Manifest

UID = "pod-uid-1"
IMAGE, DIGEST = "chat:1", "sha256:1"
MADE: dict[str, Any] = {"namespace": "team", "checkpoint": "warm", "container": "app", "image_digest": DIGEST}


async def digest_of(image: str) -> str:
    return {IMAGE: DIGEST, "chat:2": "sha256:2"}.get(image, "")


def store_in(folder: Path) -> FolderStore:
    return FolderStore(folder / "store", b"k" * 32, 0)


def copied(store: FolderStore, **made: Any) -> Manifest:
    staging = store.stage("checkpoint-u1", 1, 0)
    (staging.images / "pages-1.img").write_bytes(b"state" * 1000)
    (staging.images / "layer.tar").write_bytes(b"files")
    (staging.images / "stats-dump").write_bytes(b"")
    return store.commit(staging, MADE | made)


def actor_in(folder: Path, store: FolderStore, restore_from: str) -> Actor:
    config = AgentConfig(run_dir=str(folder / "run"), state_dir=str(folder))
    services = Services(
        config=config, journal=Journal(folder / "journal.db"), store=store, starter=KubeletStarter(config),
        changed=lambda name: None, criu_version="4.2", runc_version="1.1", sys_resource=True,
    )  # fmt: skip
    member = Member(name="again", uid="gi-uid", pod="again", pod_uid=UID, restore_from=restore_from)
    wanted = Wanted(container="app", namespace="team")
    record = Record(id="team.again", workload="again", member=member, wanted=wanted)
    services.journal.settle(record)
    return Actor(services, record, wanted)


async def test_it_begins_as_if_it_had_been_parked_so(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    copy = copied(store)
    actor = actor_in(tmp_path, store, copies.id_of_manifest(copy))
    assert restored.awaits(actor, UID)
    assert not restored.awaits(actor, "another pod's")
    await restored.prepare(actor, IMAGE, digest_of)
    record = actor.record
    assert (record.phase, record.epoch, record.wakes) == (Phase.PARKED, 1, restored.WAKES)
    [own] = store.manifests("team.again")
    store.check(own, thorough=True)
    assert [f.name for f in own.files] == [f.name for f in copy.files]
    [known] = actor.services.journal.records()
    assert (known.phase, known.epoch) == (Phase.PARKED, 1)
    store.forget("team.again")
    store.check(copy)  # what became of the one says nothing of the other
    record.enter(Phase.PENDING, 0.0)
    assert not restored.awaits(actor, UID)  # once


@pytest.mark.parametrize(
    ("made", "image", "reason"),
    [
        ({"namespace": "others"}, IMAGE, "CheckpointOfOthers"),
        ({"container": "side"}, IMAGE, "CheckpointOfOthers"),
        ({}, "chat:2", "ImageChanged"),
        ({}, "chat:3", "ImageChanged"),
    ],
)
async def test_one_that_is_not_for_it_is_refused(tmp_path: Path, made: dict[str, Any], image: str, reason: str) -> None:
    store = store_in(tmp_path)
    actor = actor_in(tmp_path, store, copies.id_of_manifest(copied(store, **made)))
    await refused(actor, image, reason)


@pytest.mark.parametrize("named", ["checkpoint-u1@0badc0de", "checkpoint-u2@{mac}", "team.chat-0@{mac}", "rubbish"])
async def test_only_what_is_named_exactly_counts(tmp_path: Path, named: str) -> None:
    store = store_in(tmp_path)
    mac = copied(store).mac
    staging = store.stage("team.chat-0", 1, 0)
    store.commit(staging, MADE)
    actor = actor_in(tmp_path, store, named.format(mac=mac))
    await refused(actor, IMAGE, "ManifestId" if named[0] in "tr" else "CheckpointGone")


async def test_a_damaged_one_is_refused(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    copy = copied(store)
    actor = actor_in(tmp_path, store, copies.id_of_manifest(copy))
    (store.images(copy) / "pages-1.img").write_bytes(b"other" * 1000)
    await refused(actor, IMAGE, ImageDamagedError.__name__.removesuffix("Error"))


async def refused(actor: Actor, image: str, reason: str) -> None:
    """Twice: the kubelet asks again, and it is not begun anew in between."""
    for _ in range(2):
        assert restored.awaits(actor, UID)
        with pytest.raises(KybernateError):
            await restored.prepare(actor, image, digest_of)
        [condition] = actor.record.conditions
        assert (condition.type, condition.status, condition.reason) == ("StateLost", "True", reason)
    assert actor.record.phase == Phase.PENDING
    assert actor.services.store.manifests("team.again") == []


async def test_a_hook_that_hangs_up_leaves_nothing_half(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    actor = actor_in(tmp_path, store, copies.id_of_manifest(copied(store)))
    asked, go = asyncio.Event(), asyncio.Event()

    async def slowly(image: str) -> str:
        asked.set()
        await go.wait()
        return DIGEST

    first = asyncio.create_task(restored.prepare(actor, IMAGE, slowly))
    await asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(KybernateError, match="is being prepared"):
        await restored.prepare(actor, IMAGE, digest_of)
    go.set()
    async with asyncio.timeout(20):
        while restored.awaits(actor, UID):
            await asyncio.sleep(0.01)
    assert actor.record.phase == Phase.PARKED
    store.check(store.manifests("team.again")[0])


async def test_what_a_killed_agent_left_is_no_hindrance(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    copy = copied(store)
    store.commit(store.stage("team.again", 1, 0), MADE)  # committed, and the journal does not know
    actor = actor_in(tmp_path, store, copies.id_of_manifest(copy))
    await restored.prepare(actor, IMAGE, digest_of)
    assert [f.name for f in store.manifests("team.again")[0].files] == [f.name for f in copy.files]
