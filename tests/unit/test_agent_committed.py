"""What the agent makes of a dump or a restore whose keeper says that it failed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cluster_actor import actor_in
from keeper_standin import KeeperStandin
from kybernate_agent import life, orphan, portable, sleep, wake
from kybernate_agent.actor import Actor
from kybernate_agent.instance import Phase, Verb
from kybernate_agent.keepers import Keeper, KeeperState, process_start
from kybernate_agent.sleep import DumpFailedError, Parking
from kybernate_agent.stage import Stage

from kybernate.errors import RefusedError
from kybernate.store import Staging

NOTHING: Any = None


@pytest_asyncio.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[KeeperStandin]:
    async with KeeperStandin(tmp_path / "run", "c1", "parked") as keeper:
        yield keeper


def actor_of(folder: Path, phase: Phase, **known: Any) -> Actor:
    actor = actor_in(folder, phase, **known)
    actor._keeper = Keeper(actor.services.config.run, "c1")
    return actor


def parking_of(actor: Actor) -> Parking:
    """One whose images are committed; the processes are this test's own, which does not end."""
    pid = os.getpid()
    state = KeeperState("frozen", "c1", 0, init_pid=pid, init_start=process_start(pid))
    stage = Stage(actor.services.journal, actor.record, Verb.PARK, "idle")
    parking = Parking(actor, stage, Staging("team.chat-0", 1, Path()), state, NOTHING)
    parking.committed = True
    return parking


@pytest.mark.parametrize(
    ("state", "mark", "through"),
    [
        ("dumping", True, True),
        ("frozen", True, True),
        ("ended", True, True),
        ("", True, True),
        ("parked", False, True),
        ("dumping", False, False),
        ("frozen", False, False),
        ("", False, False),
    ],
)
async def test_images_stay_once_criu_has_our_yes(
    keeper: KeeperStandin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, mark: bool, through: bool
) -> None:
    monkeypatch.setattr(sleep, "END_SECONDS", 0.05)
    actor = actor_of(tmp_path, Phase.SUSPENDED)
    if state:
        keeper.state = state
    else:
        actor.forget_keeper()
    if mark:
        keeper.mark()
    assert await parking_of(actor).went_through() == through
    stays = mark and state in ("dumping", "")
    assert [event.reason for event in actor.record.events] == (["ProcessStays"] if stays else [])


async def test_without_a_commit_nothing_went_through(keeper: KeeperStandin, tmp_path: Path) -> None:
    parking = parking_of(actor_of(tmp_path, Phase.SUSPENDED))
    parking.committed = False
    keeper.mark()  # of an earlier dump
    assert not await parking.went_through()


class Traffic:
    async def release(self) -> None: ...
    async def hold(self, ports: list[int]) -> None: ...


@pytest.mark.parametrize("through", [True, False])
async def test_what_a_killed_criu_left_of_an_orphan_ends_after_our_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: bool
) -> None:
    done: list[str] = []

    def noted(name: str, result: Any = None) -> Any:
        async def do(*_: object) -> Any:
            done.append(name)
            return result

        return do

    async def killed(*_: object) -> None:
        raise DumpFailedError(instance="team.chat-0", cause="criu was killed", remedy="", code="", transient=False)

    actor = actor_of(tmp_path, Phase.RUNNING)
    traffic: Any = Traffic()
    actor._traffic = traffic
    monkeypatch.setattr(actor, "own_ports", noted("ports", []))
    monkeypatch.setattr(orphan, "freeze", lambda cgroups: None)
    monkeypatch.setattr(orphan, "end", noted("end"))
    monkeypatch.setattr(portable, "facts_of", noted("facts"))
    monkeypatch.setattr(life, "needed_bytes", noted("bytes", 0))
    monkeypatch.setattr(life, "dump", killed)
    monkeypatch.setattr(life, "_let_go", noted("let go"))
    monkeypatch.setattr(Parking, "went_through", noted("asked", through))
    stage = Stage(actor.services.journal, actor.record, Verb.RESCUE, "its keeper died")
    dumping = life._dump_orphan(actor, stage, KeeperState("running", "c1", 0, cgroups={"": str(tmp_path)}))
    if through:
        await dumping
    else:
        with pytest.raises(DumpFailedError):
            await dumping
    assert done[-2:] == ["asked", "end" if through else "let go"]


@pytest.mark.parametrize("state", ["running", "parked", "restoring"])
async def test_one_that_was_restored_already_is_awake(keeper: KeeperStandin, tmp_path: Path, state: str) -> None:
    """The answer of an earlier try said that it failed, or did not come."""
    actor = actor_of(tmp_path, Phase.PARKED, epoch=1)
    traffic: Any = Traffic()
    actor._traffic = traffic
    staging = actor.services.store.stage("team.chat-0", 1, 0)
    (staging.images / "pages-1.img").write_bytes(b"state")
    actor.services.store.commit(staging, {})
    keeper.state = state
    keeper.answers["restore"] = {"ok": False, "error": "wrong_state", "message": f"c1 is {state}, not parked"}
    stage = Stage(actor.services.journal, actor.record, Verb.RESUME, "a call came")
    if state == "running":
        await wake.resume(actor, stage)
        assert (actor.record.phase, actor.record.unproven) == (Phase.RUNNING, 1)
        actor.forget_keeper()
    else:
        with pytest.raises(RefusedError, match="not parked"):
            await wake.resume(actor, stage)
        assert actor.record.phase == Phase.PARKED
    await asyncio.sleep(0)


async def test_what_the_keeper_answers_is_newer_than_its_file(keeper: KeeperStandin, tmp_path: Path) -> None:
    keeper.write(init_pid=0, init_start=0)
    keeper.answers["state"] = {"ok": True, "state": "running", "init_pid": 7, "init_start": 70}
    found = await Keeper(tmp_path / "run", "c1").state()
    assert (found.state, found.init_pid, found.init_start) == ("running", 7, 70)
    del keeper.answers["state"]["init_start"]  # a keeper of before this agent
    keeper.write(init_pid=7, init_start=71)
    assert (await Keeper(tmp_path / "run", "c1").state()).init_start == 71
