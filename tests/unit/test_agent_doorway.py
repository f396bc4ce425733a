"""A container that is let in: its files first, one container at a time, and only while what was answered is true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cluster_actor
import pytest
from cluster_actor import UID
from kybernate_agent import life
from kybernate_agent.actor import Actor
from kybernate_agent.cluster import doorway
from kybernate_agent.cluster.admission import Action
from kybernate_agent.instance import Phase, Pod, Verb

from kybernate.errors import RefusedError

MESSAGE: dict[str, Any] = {"pod_uid": UID, "container": "c2", "name": "app", "bundle": "/nowhere", "annotations": {}}


class Carrying:
    """Stands for the copying of files: it lasts until it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.end = asyncio.Event()
        self.times = 0

    async def __call__(self, actor: Actor, bundle: Path) -> None:
        self.times += 1
        self.begun.set()
        await self.end.wait()


@pytest.fixture
def carrying(monkeypatch: pytest.MonkeyPatch) -> Carrying:
    carrying = Carrying()
    monkeypatch.setattr(life, "carry_layer", carrying)
    return carrying


def actor_in(folder: Path, phase: Phase = Phase.PARKED) -> Actor:
    """With images of its epoch, and the layer of the container before."""
    actor = cluster_actor.actor_in(folder, phase, epoch=1, pod=Pod(uid=UID, container="c1", upper=str(folder)))
    staging = actor.services.store.stage("team.chat-0", 1, 0)
    (staging.images / "pages-1.img").write_bytes(b"state")
    actor.services.store.commit(staging, {})
    actor.over.set()
    return actor


async def test_files_go_into_one_container_at_a_time(tmp_path: Path, carrying: Carrying) -> None:
    actor = actor_in(tmp_path)
    assert (await doorway.ask(actor, MESSAGE)).action == Action.RESTORE
    first = asyncio.create_task(doorway.open(actor, MESSAGE, Action.RESTORE))
    await carrying.begun.wait()
    assert (await doorway.ask(actor, MESSAGE)).action == Action.WAIT
    with pytest.raises(RefusedError):  # one whose answer was given just before
        await doorway.open(actor, MESSAGE, Action.RESTORE)
    carrying.end.set()
    assert await first == {"action": "restore"}
    assert carrying.times == 1
    assert (await doorway.ask(actor, MESSAGE)).action == Action.RESTORE


async def test_nothing_is_let_in_before_the_layer_lies_with_the_images(tmp_path: Path) -> None:
    actor = actor_in(tmp_path)
    actor.over.clear()
    assert (await doorway.ask(actor, MESSAGE)).action == Action.WAIT
    actor.over.set()
    assert (await doorway.ask(actor, MESSAGE)).action == Action.RESTORE


async def test_what_begins_while_is_looked_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = actor_in(tmp_path)
    manifests = actor.services.store.manifests

    def and_begin(instance: str) -> Any:
        actor.busy = Verb.KEEP
        return manifests(instance)

    monkeypatch.setattr(actor.services.store, "manifests", and_begin)
    assert (await doorway.ask(actor, MESSAGE)).action == Action.WAIT


@pytest.mark.parametrize(("kept", "action"), [(True, Action.RESTORE), (False, Action.LOSE)])
async def test_the_container_before_is_not_needed_where_the_images_have_its_layer(
    tmp_path: Path, kept: bool, action: Action
) -> None:
    actor = actor_in(tmp_path)
    actor.record.pod.upper = str(tmp_path / "removed")
    if kept:
        staging = actor.services.store.stage("team.chat-0", 2, 0)
        (staging.images / "layer.tar").write_bytes(b"files")
        actor.services.store.commit(staging, {})
        actor.record.epoch = 2
    assert (await doorway.ask(actor, MESSAGE)).action == action


def deleted(actor: Actor) -> None:
    actor.deleting = True


def given_up(actor: Actor) -> None:
    actor.give_up("its pod was deleted")


def discarded(actor: Actor) -> None:
    actor.record.enter(Phase.PENDING, 0.0)


def another_pods(actor: Actor) -> None:
    assert actor.record.member is not None
    actor.record.member.pod_uid = "pod-uid-2"


@pytest.mark.parametrize("what", [deleted, given_up, discarded, another_pods], ids=lambda what: what.__name__)
async def test_what_is_not_true_any_more_is_not_answered(
    tmp_path: Path, carrying: Carrying, what: Callable[[Actor], None]
) -> None:
    actor = actor_in(tmp_path)
    coming = asyncio.create_task(doorway.open(actor, MESSAGE, Action.RESTORE))
    await carrying.begun.wait()
    what(actor)
    carrying.end.set()
    with pytest.raises(RefusedError, match="asked for again"):
        await coming
    assert not any(c.type == "StateLost" for c in actor.record.conditions)


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.BACKOFF])
async def test_a_beginning_is_answered(tmp_path: Path, phase: Phase) -> None:
    assert await doorway.open(actor_in(tmp_path, phase), MESSAGE, Action.START) == {"action": "start"}


@pytest.mark.parametrize("phase", [Phase.PARKED, Phase.SUSPENDED, Phase.RUNNING, Phase.LOST])
async def test_a_state_that_came_meanwhile_is_no_beginning(tmp_path: Path, phase: Phase) -> None:
    with pytest.raises(RefusedError, match="asked for again"):
        await doorway.open(actor_in(tmp_path, phase), MESSAGE, Action.START)
