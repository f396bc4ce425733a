"""The keeper where things outlive their verb: an init that does not end, a /run that is full."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from kybernate_shim import direct, process, record, sleep
from kybernate_shim.keeper import Keeper
from kybernate_shim.loop import Loop, Refused, Wait

INIT = 4_000_000  # beyond every pid that there is by default
REQUEST = {"verb": "dump", "images": "/i", "work": "/w", "conf": "", "deadline_seconds": 10}
Verb = Generator[Wait, bool, dict[str, Any]]


class Gone(Exception):
    """The keeper ended as its init did."""


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """Of a frozen container, in this process: it hears no signals, and its end is the exception Gone."""

    def leave(self: Keeper, status: int) -> None:
        raise Gone(status)

    monkeypatch.setattr(Loop, "_catch_signals", lambda self: -1)
    monkeypatch.setattr(Keeper, "leave", leave)
    monkeypatch.setattr(sleep, "FORWARD_SECONDS", 0)
    monkeypatch.setattr(sleep, "UNDO_SECONDS", 0)
    group = tmp_path / "group"
    group.mkdir()
    for name in ("cgroup.freeze", "cgroup.procs"):
        (group / name).touch()
    (group / "cgroup.events").write_text("frozen 1\n")
    facts: dict[str, Any] = {
        "container": "c1",
        "bundle": "/b",
        "runc": "/bin/true",
        "runc_root": str(tmp_path),
        "runc_globals": [],
    }
    facts |= {"state": record.FROZEN, "started": True, "init_pid": INIT, "init_start": 1}
    return Keeper(record.Record(str(tmp_path), facts | {"cgroups": {"": str(group)}}), 0)


def saved(keeper: Keeper) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(keeper.record.path("state.json")).read_text())
    return found


def dumps(keeper: Keeper, monkeypatch: pytest.MonkeyPatch, error: Exception, *, mark: bool) -> Refused:
    """A dump in which CRIU gets the agent's yes (`mark`) and then fails; nobody ends. What it is answered."""

    def run(*_: object) -> Generator[Wait, bool, None]:
        if mark:
            Path(keeper.record.path("committed")).touch()
        raise error
        yield

    def at_once(*_: object) -> Generator[Wait, bool, None]:
        yield from ()

    monkeypatch.setattr(sleep, "_stop", at_once)
    monkeypatch.setattr(sleep, "_undo_dump", at_once)
    monkeypatch.setattr(sleep, "_root_for_dump", lambda record: "/r")
    monkeypatch.setattr(sleep, "_run", run)
    monkeypatch.setattr(process, "spawn", lambda *_: 1)
    with pytest.raises(Refused) as refused:
        finish(keeper.guarded(sleep.dump(keeper, REQUEST)))
    return refused.value


def finish(verb: Verb) -> dict[str, Any]:
    """Whatever it waits for does not come in time."""
    try:
        next(verb)
        while True:
            verb.send(False)
    except StopIteration as end:
        reply: dict[str, Any] = end.value
        return reply


def test_who_outlives_our_yes_is_parked_when_he_ends(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = dumps(keeper, monkeypatch, Refused("dump_failed", "criu was killed"), mark=True)
    assert str(INIT) in str(refused)
    assert keeper.record.state == record.DUMPING
    keeper.over()  # as after each answer: its init is there, so nothing is over
    keeper.on_exit(INIT, 9)
    assert (keeper.record.state, keeper.record.init_pid) == (record.PARKED, 0)
    assert (saved(keeper)["state"], saved(keeper)["init_pid"]) == (record.PARKED, 0)
    keeper.over()
    assert keeper.init_status is None


def test_who_ends_during_another_verb_is_parked_after_it(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps(keeper, monkeypatch, Refused("dump_failed", "criu was killed"), mark=True)
    keeper.loop.step = (Wait(0) for _ in ())  # type: ignore[assignment]
    keeper.on_exit(INIT, 9)
    assert keeper.record.state == record.DUMPING
    keeper.loop.step = None
    keeper.over()
    assert keeper.record.state == record.PARKED


def test_what_nobody_foresaw_after_our_yes_does_not_undo_it(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = dumps(keeper, monkeypatch, KeyError("nobody foresaw it"), mark=True)
    assert refused.code == "internal"
    assert keeper.record.state == record.DUMPING
    keeper.on_exit(INIT, 9)
    assert keeper.record.state == record.PARKED


@pytest.mark.parametrize("error", [Refused("dump_failed", "criu was killed"), KeyError("nobody foresaw it")])
def test_without_our_yes_it_is_as_before(keeper: Keeper, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    dumps(keeper, monkeypatch, error, mark=False)
    assert keeper.record.state == record.FROZEN
    with pytest.raises(Gone):
        keeper.on_exit(INIT, 9)


def test_a_restore_that_cannot_be_written_down_is_one(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """/run fills while CRIU works."""
    full = False
    save = record.Record.save

    def save_if_there_is_room(self: record.Record) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self)

    def run(*_: object) -> Generator[Wait, bool, None]:
        nonlocal full
        Path(keeper.record.path("init.pid")).write_text(str(os.getpid()))
        full = True
        yield from ()

    monkeypatch.setattr(record.Record, "save", save_if_there_is_room)
    monkeypatch.setattr(sleep, "_run", run)
    monkeypatch.setattr(direct, "ready", lambda record: None)
    monkeypatch.setattr(process, "spawn", lambda *_: 1)
    keeper.record.enter(record.PARKED)
    reply = finish(keeper.guarded(sleep.restore(keeper, REQUEST | {"verb": "restore", "work": str(tmp_path)})))
    assert (reply["ok"], reply["state"], reply["init_pid"]) == (True, record.RUNNING, os.getpid())
    assert reply["init_start"] == record.start_time(os.getpid()), "for the agent, whom the file cannot tell it"
    assert saved(keeper)["state"] == record.RESTORING
    assert "after the restore" in Path(keeper.record.path("keeper.log")).read_text()
    full = False
    keeper.record.enter(record.FROZEN)
    assert (saved(keeper)["state"], saved(keeper)["init_pid"]) == (record.FROZEN, os.getpid())
