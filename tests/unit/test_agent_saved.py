"""Files of a container that ends while they are saved: a neighbour's clearing up is no damage, its own end is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_actor import UID, actor_in
from kybernate_agent import checkpoint, keepers, life, portable, whole
from kybernate_agent.actor import Actor
from kybernate_agent.checkpoint import CopiedError, Copy, Copying
from kybernate_agent.instance import Leaving, Phase, Verb
from kybernate_agent.keepers import KeeperState, process_start
from kybernate_agent.portable import Facts
from kybernate_agent.sleep import EndedMeanwhileError, Parking
from kybernate_agent.stage import Stage
from kybernate_agent.volumes import Mount

from kybernate.criu.privileges import Allowed
from kybernate.errors import StateLostError
from kybernate.store.archive import entries, pack

ALLOWED = Allowed(0, frozenset({0}), 0, False, "", "", "")


class Container:
    """A keeper and an init, which are processes that do nothing, with a layer and an emptyDir."""

    def __init__(self, folder: Path) -> None:
        self.keeper, self.init = (
            subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(2)
        )
        self.record = folder / "run" / "keepers" / "c1" / "state.json"
        self.record.parent.mkdir(parents=True)
        self.layer, self.volume = folder / "upper", folder / "volume"
        for place in (self.layer, self.volume):
            (place / "folder").mkdir(parents=True)
            (place / "folder" / "file").write_text("precious")
            (place / "file").write_text("precious")
        mounts = (Mount("/data", "emptyDir", "data", False, volume=str(self.volume)),)
        self.facts = Facts("c1", UID, "s1", "app:1", "", str(self.layer), mounts, ALLOWED)
        self.enter("dumping")

    def enter(self, state: str) -> None:
        known = {
            "state": state, "container": "c1", "bundle": "/bundle",
            "keeper_pid": self.keeper.pid, "keeper_start": process_start(self.keeper.pid),
            "init_pid": self.init.pid, "init_start": process_start(self.init.pid),
        }  # fmt: skip
        self.record.write_text(json.dumps(known))

    def state(self) -> KeeperState:
        found = keepers.Keeper(self.record.parents[2], "c1").last_state()
        assert found is not None
        return found

    def kill(self, *processes: subprocess.Popen[bytes]) -> None:
        for process in processes:
            process.kill()
            process.communicate(timeout=60)

    def end(self) -> None:
        """As by SIGKILL when the grace is over; and the kubelet is half through the volume."""
        self.enter("ended")
        self.kill(self.init, self.keeper)
        shutil.rmtree(self.volume / "folder")
        os.unlink(self.volume / "file")


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    made = Container(tmp_path)
    yield made
    made.kill(made.keeper, made.init)


@pytest.fixture
def actor(tmp_path: Path, container: Container, monkeypatch: pytest.MonkeyPatch) -> Actor:
    class Answering(keepers.Keeper):
        async def state(self) -> KeeperState:
            return container.state()

    async def facts_of(*_: Any) -> Facts:
        return container.facts

    actor = actor_in(tmp_path, Phase.PARKED, epoch=1)
    actor._keeper = Answering(tmp_path / "run", "c1")
    monkeypatch.setattr(portable, "facts_of", facts_of)
    return actor


def before_the_volume(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`act` is done when the layer is packed and the volume is not."""

    def with_act(folder: Path, *arguments: Any, **named: Any) -> int:
        if folder.name == "volume":
            act()
        return pack(folder, *arguments, **named)

    monkeypatch.setattr(portable, "pack", with_act)


def stage_of(actor: Actor, verb: Verb) -> Stage:
    return Stage(actor.services.journal, actor.record, verb, "it is time")


def parking(actor: Actor, container: Container, kind: type[Parking] = Parking) -> Parking:
    actor.record.leaving = Leaving(signal=15, at=0.0, drain=0.0)
    staging = actor.services.store.stage("team.chat-0", 2, 1 << 20)
    (staging.images / "pages-1.img").write_bytes(b"memory")
    return kind(actor, stage_of(actor, Verb.PARK), staging, container.state(), container.facts)


async def test_a_container_that_ends_while_it_is_packed_leaves_no_checkpoint(
    actor: Actor, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_the_volume(monkeypatch, container.end)
    under_way = parking(actor, container)
    with pytest.raises(EndedMeanwhileError, match="c1 ended"):
        await under_way.commit()
    assert actor.services.store.manifests() == []
    assert not await under_way.went_through(), "its processes are gone, and what is there is not its state"


async def test_a_container_that_stands_is_saved_whole(
    actor: Actor, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a neighbour clears its part of the volume up meanwhile."""
    before_the_volume(monkeypatch, lambda: os.unlink(container.volume / "file"))
    await parking(actor, container).commit()
    (made,) = actor.services.store.manifests()
    assert {"layer.tar", "emptydir-data.tar", "pages-1.img"} <= {file.name for file in made.files}


async def test_a_keeper_that_was_killed_alone_is_no_end(
    actor: Actor, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook has containerd wait for what lives."""
    before_the_volume(monkeypatch, lambda: container.kill(container.keeper))
    await parking(actor, container).commit()
    assert [made.epoch for made in actor.services.store.manifests()] == [2]


async def test_a_copy_of_what_ends_meanwhile_is_none(
    actor: Actor, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CopiedError):
        await parking(actor, container, Copying).commit()
    before_the_volume(monkeypatch, container.end)
    copying = parking(actor, container, Copying)
    with pytest.raises(EndedMeanwhileError):
        await copying.commit()
    assert isinstance(copying, Copying)
    assert not copying.saved


def parked(actor: Actor, container: Container) -> None:
    """In place: its images alone."""
    staging = actor.services.store.stage("team.chat-0", 1, 1 << 20)
    (staging.images / "pages-1.img").write_bytes(b"memory")
    actor.services.store.commit(staging, {})
    container.enter("parked")
    container.kill(container.init)


async def test_what_is_parked_becomes_whole_only_while_its_container_stands(
    actor: Actor, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    parked(actor, container)
    with monkeypatch.context() as patched:
        before_the_volume(patched, container.end)
        with pytest.raises(EndedMeanwhileError):
            await whole.make_whole(actor)
    assert [made.epoch for made in actor.services.store.manifests()] == [1], "until its successor is proven"
    assert actor.record.epoch == 1
    assert actor.services.store.sweep() == []


async def test_what_is_parked_becomes_whole(actor: Actor, container: Container) -> None:
    parked(actor, container)
    await whole.make_whole(actor)
    (made,) = actor.services.store.manifests()
    assert made.epoch == actor.record.epoch == 2
    assert {"layer.tar", "emptydir-data.tar", "pages-1.img"} <= {file.name for file in made.files}


def over(actor: Actor, container: Container) -> None:
    """Parked in place, and its keeper has died: the kubelet makes its next container."""
    parked(actor, container)
    actor.record.pod.upper = str(container.layer)
    actor._keeper = None
    container.kill(container.keeper)


async def keep(actor: Actor) -> None:
    async with stage_of(actor, Verb.KEEP) as stage:
        await whole.keep_layer(actor, stage)


async def test_the_layer_of_a_container_that_is_over_is_put_with_the_images(actor: Actor, container: Container) -> None:
    over(actor, container)
    assert actor.layer_outside
    await keep(actor)
    (made,) = actor.services.store.manifests()
    assert {file.name for file in made.files} == {"layer.tar", "pages-1.img"}
    assert (made.epoch, actor.record.epoch, actor.record.stored_bytes) == (2, 2, made.size_bytes)
    actor.services.store.check(made)
    assert not actor.layer_outside
    await keep(actor)
    assert [again.epoch for again in actor.services.store.manifests()] == [2], "nothing is to be added"


async def test_a_layer_that_is_being_removed_is_not_kept(
    actor: Actor, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    over(actor, container)

    def and_remove(folder: Path, *arguments: Any, **named: Any) -> int:
        os.unlink(folder / "file")  # before it is read, which nobody sees while the rest is
        return pack(folder, *arguments, **named)

    monkeypatch.setattr(portable, "pack", and_remove)
    await keep(actor)
    assert [made.epoch for made in actor.services.store.manifests()] == [1]
    assert [event.reason for event in actor.record.events] == ["LayerOutside"]
    assert "was being removed" in actor.record.events[0].message
    assert actor.services.store.sweep() == []
    assert not actor.layer_outside, "its next container does not wait for ever"


async def test_who_waits_for_a_layer_waits_on_for_the_next_agent(
    actor: Actor, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one is told to end in the midst of it: sandbox and clearing up are not let go on without the layer."""
    over(actor, container)
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slowly(*arguments: Any, **named: Any) -> int:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(60)
        return pack(*arguments, **named)

    monkeypatch.setattr(portable, "pack", slowly)
    keeping = asyncio.create_task(keep(actor))
    await asyncio.wait_for(begun.wait(), 60)
    deletion = asyncio.create_task(actor.container_deleted())
    keeping.cancel()
    await asyncio.wait({keeping})
    go_on.set()
    assert keeping.cancelled()
    assert actor.layer_outside
    assert not deletion.done()
    await keep(actor)
    await asyncio.wait_for(deletion, 60)


async def test_what_nobody_foresaw_is_said_and_keeps_nobody_waiting(
    actor: Actor, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    over(actor, container)

    def broken(*_: Any, **__: Any) -> int:
        raise ZeroDivisionError("a slip")

    monkeypatch.setattr(portable, "pack", broken)
    await keep(actor)
    assert "a slip" in actor.record.events[0].message
    assert not actor.layer_outside


@pytest.mark.parametrize("phase", list(Phase))
async def test_for_what_a_dead_keepers_container_is_kept(actor: Actor, phase: Phase) -> None:
    """What nothing comes of holds nobody up: neither now nor after another start of the agent."""
    actor.record.phase = phase
    deletion = asyncio.create_task(actor.container_deleted())
    await asyncio.sleep(0)
    assert deletion.done() is (phase not in (Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED))
    actor.leave_container()
    await asyncio.wait_for(deletion, 60)


async def test_a_layer_that_goes_while_it_is_copied_is_lost(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("new", "newer"):
        (tmp_path / name).mkdir()
    await life.copy_layer(container.layer, tmp_path / "new")
    assert (tmp_path / "new" / "folder" / "file").read_text() == "precious"

    def and_remove(*arguments: Any) -> int:
        found = entries(*arguments)
        (container.layer / "file").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(life, "entries", and_remove)
    with pytest.raises(StateLostError, match="was being removed"):
        await life.copy_layer(container.layer, tmp_path / "newer")


async def test_without_a_layer_nothing_is_kept(actor: Actor, container: Container) -> None:
    over(actor, container)
    shutil.rmtree(container.layer)
    await keep(actor)
    assert [made.epoch for made in actor.services.store.manifests()] == [1]
    assert (actor.record.events, actor.layer_outside) == ([], False)


async def test_a_parked_one_whose_keeper_ends_is_not_copied(
    actor: Actor, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process of it lives, so nobody waits with the clearing up."""
    parked(actor, container)
    before_the_volume(monkeypatch, lambda: container.kill(container.keeper))
    actor.copies.append(Copy("checkpoint-u1", True))
    with pytest.raises(EndedMeanwhileError):
        await checkpoint.take_copy(actor, stage_of(actor, Verb.CHECKPOINT))
    assert actor.services.store.sweep() == []


@pytest.mark.parametrize(
    ("written", "keeper", "init", "there"),
    [
        ("running", True, True, True),
        ("parked", True, False, True),
        ("ended", True, True, True),  # it has not gone yet, so containerd does not know
        ("dumping", False, True, True),
        ("ended", False, True, False),
        ("dumping", False, False, False),
        ("", False, True, False),  # the hook has cleaned up
    ],
)
def test_who_stands(written: str, keeper: bool, init: bool, there: bool, container: Container) -> None:
    container.enter(written or "running")
    state = container.state()
    if not keeper:
        container.kill(container.keeper)
    if not init:
        container.kill(container.init)
    if not written:
        shutil.rmtree(container.record.parent)
    assert keepers.stands(container.record.parents[2], state) is there
