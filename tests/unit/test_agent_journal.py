"""The journal keeps what was true and what was about to be done."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_actor import actor_in
from kybernate_agent import wake
from kybernate_agent.instance import Condition, Phase, Record, Transition, Verb
from kybernate_agent.journal import Journal, JournalError
from kybernate_agent.keepers import KeeperState
from kybernate_agent.sleep import Parking
from kybernate_agent.stage import Stage

from kybernate.errors import RefusedError
from kybernate.store import Manifest

NOTHING: Any = None


def test_a_step_is_there_before_it_is_done_and_gone_when_its_verb_is_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    record = Record(id="chat-0", workload="chat", phase=Phase.RUNNING, epoch=2)
    journal.settle(record)
    journal.step("chat-0", "suspend", "hold", 2, ports=[8080])
    journal.step("chat-0", "suspend", "freeze", 2)
    other = Journal(tmp_path / "journal.db")
    assert [(s.verb, s.step, s.detail) for s in other.steps("chat-0")] == [
        ("suspend", "hold", {"ports": [8080]}),
        ("suspend", "freeze", {}),
    ]
    record.enter(Phase.SUSPENDED, 5.0)
    journal.settle(record)
    assert other.steps("chat-0") == []
    assert other.records() == [record]


def test_forget_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.settle(Record(id="chat-0", workload="chat"))
    journal.step("chat-0", "end", "stop", 0)
    journal.forget("chat-0")
    assert (journal.records(), journal.steps("chat-0")) == ([], [])


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.db")
    assert stat.S_IMODE((tmp_path / "journal.db").stat().st_mode) == 0o600


def test_what_was_written_survives_kill_nine(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from kybernate_agent.journal import Journal\n"
        "j = Journal(Path(sys.argv[1])); j.step('a-0', 'park', 'dump', 7); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "j.db")], check=False, timeout=20)
    assert done.returncode == -signal.SIGKILL
    assert [(s.step, s.epoch) for s in Journal(tmp_path / "j.db").steps("a-0")] == [("dump", 7)]


class Disk:
    """What is synced, in its order with what else is noted: of the journal's log by the steps that it holds then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noted: list[str] = []
        self.real = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.name == "journal.db-wal":
            found = [step for step in ("commit", "end-processes", "retire") if step.encode() in path.read_bytes()]
            self.noted.append(f"log with {' '.join(found)}")
        else:
            self.noted.append("folder" if path.is_dir() else path.name)
        self.real(handle)


async def test_a_step_is_on_the_disk_before_what_follows_and_the_next_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, disk = Journal(tmp_path / "journal.db"), Disk(monkeypatch)
    journal.step("a-0", "park", "commit", 1)
    assert disk.noted == []
    await journal.synced()
    assert disk.noted == ["log with commit", "folder"]
    journal.step("a-0", "park", "end-processes", 1)
    assert len(disk.noted) == 2
    await journal.synced()
    assert disk.noted[2:] == ["log with commit end-processes"], "the log's name needs to be synced once"


async def test_a_disk_that_takes_its_time_keeps_nobody_else_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, others, order = Journal(tmp_path / "journal.db"), threading.Event(), list[str]()

    def fsync(handle: int) -> None:
        assert others.wait(20), "the event loop stood still"
        order.append("synced")

    monkeypatch.setattr(os, "fsync", fsync)
    journal.step("a-0", "park", "commit", 1)
    syncing = asyncio.create_task(journal.synced())
    await asyncio.sleep(0)  # it has begun
    journal.step("b-0", "resume", "verify", 1)
    order.append("another's step")
    others.set()
    await syncing
    assert order[:2] == ["another's step", "synced"]


async def test_images_go_after_the_step_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor, disk = actor_in(tmp_path, Phase.RUNNING, unproven=1), Disk(monkeypatch)

    def manifests(instance: str) -> list[Manifest]:
        disk.noted.append("images go")
        return []

    nothing: Any = SimpleNamespace(manifests=manifests)
    actor.services = replace(actor.services, store=nothing)
    async with Stage(actor.services.journal, actor.record, Verb.PROVE, "it has lived") as stage:
        await wake.prove(actor, stage)
    assert disk.noted == ["log with retire", "folder", "images go"]


async def test_images_are_committed_after_the_step_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, disk = actor_in(tmp_path, Phase.SUSPENDED), Disk(monkeypatch)
    staging: Any = SimpleNamespace(epoch=1, images=tmp_path)

    def look(parking: Parking) -> bool:
        disk.noted.append("looked at")
        return False

    monkeypatch.setattr(Parking, "_as_it_was", look)
    async with Stage(actor.services.journal, actor.record, Verb.PARK, "idle") as stage:
        parking = Parking(actor, stage, staging, KeeperState("frozen", "c1", 0), NOTHING)
        with pytest.raises(RefusedError):
            await parking.commit()
    assert disk.noted == ["log with commit", "folder", "looked at"]


def test_a_journal_that_is_there_already_is_opened_without_a_write(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.db").close()
    journal = Journal(tmp_path / "journal.db")
    assert (tmp_path / "journal.db-wal").stat().st_size == 0
    journal.settle(Record(id="a-0", workload="a"))
    assert [record.id for record in journal.records()] == ["a-0"]


def test_a_journal_that_cannot_be_opened_is_an_error_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"something else" * 1000)
    for path in (tmp_path / "journal.db", tmp_path / "missing/journal.db"):
        with pytest.raises(JournalError, match=r"journal\.db"):
            Journal(path)


async def test_a_verb_that_fails_is_settled_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    record = Record(id="a-0", workload="a", phase=Phase.SUSPENDED)
    try:
        async with Stage(journal, record, Verb.PARK, "idle") as stage:
            stage.step("dump")
            raise OSError("no room")
    except OSError:
        assert journal.steps("a-0") == []
    transition: Transition = journal.records()[0].history[-1]
    assert (transition.verb, transition.outcome, transition.message) == ("park", "failed", "no room")
    assert "dump" in transition.phases


def test_a_condition_that_says_the_same_is_no_news() -> None:
    record = Record(id="a-0", workload="a")
    said = Condition(type="NotParkable", status="True", reason="IoUring", message="x", at=1.0)
    assert record.set_condition(said)
    assert not record.set_condition(Condition(type="NotParkable", status="True", reason="IoUring", message="x", at=9.0))
    assert record.conditions == [said]


@pytest.mark.parametrize("verb", list(Verb))
async def test_a_full_disk_keeps_nobody_from_waking_or_ending(tmp_path: Path, verb: Verb) -> None:
    journal = Journal(tmp_path / "journal.db")
    record = Record(id="a-0", workload="a", phase=Phase.PARKED)
    journal.close()  # whatever is to be written fails
    stage = Stage(journal, record, verb, "it is time")
    if verb in (Verb.RESUME, Verb.LEAVE, Verb.END, Verb.KEEP):
        stage.step("done all the same")
    else:
        with pytest.raises(JournalError):
            stage.step("not done")
