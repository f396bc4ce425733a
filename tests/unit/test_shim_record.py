"""What a keeper writes down of its container's life: when it began to run, and when that ended."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from kybernate_agent.keepers import Keeper
from kybernate_shim import record as states
from kybernate_shim.record import Record

FACTS = {"container": "c1", "bundle": "/b", "runc": "runc", "runc_root": "/run/runc", "runc_globals": []}
START = ("created", "running")
LIVES = [
    ("started", START, None),
    ("started and ended", (*START, "ended"), 1),
    ("slept in memory between", (*START, "frozen", "running", "ended"), 3),
    ("a dump that came to nothing", (*START, "dumping", "running", "ended"), 3),
    ("parked and restored", (*START, "frozen", "dumping", "parked", "restoring", "running", "ended"), 1),
    ("restored where it had never run", ("awaiting-restore", "restoring", "running", "ended"), 1),
    ("ended while parked", (*START, "dumping", "parked", "ended"), None),
    ("ended while it was restored", (*START, "dumping", "parked", "restoring", "ended"), None),
    ("never ran", ("created", "ended"), None),
    ("told to end, then gone", (*START, "ended", "ended"), 1),
]


@pytest.mark.parametrize(("name", "life", "lived"), LIVES, ids=[name for name, *_ in LIVES])
def test_how_long_it_lived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, life: tuple[str, ...], lived: int | None
) -> None:
    """Each step takes a second of the machine's; its clock goes backwards meanwhile."""
    seconds = iter(range(100, 200))
    walls = iter(range(2000, 1000, -1))
    folder = tmp_path / "keepers" / "c1"
    folder.mkdir(parents=True)
    record = Record(str(folder), dict(FACTS))
    for state in life:
        told = {time.CLOCK_BOOTTIME: float(next(seconds))}
        machine = SimpleNamespace(
            CLOCK_BOOTTIME=time.CLOCK_BOOTTIME, clock_gettime=told.__getitem__, time=lambda: float(next(walls))
        )
        monkeypatch.setattr(states, "time", machine)
        record.enter(state)
    known = Keeper(tmp_path, "c1").last_state()
    assert known is not None
    if "ended" not in life:
        assert (known.ran_at, known.lived) == (101.0, 0.0)
    else:
        assert known.lived == (lived or 0)


def test_a_record_of_before_is_read_and_says_nothing_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "keepers" / "c1"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({**FACTS, "state": "ended", "keeper_pid": 7, "since": 5.0}))
    old = Record.load(str(folder))
    assert (old.ran_at, old.ended_at, old.since) == (0.0, 0.0, 5.0)
    known = Keeper(tmp_path, "c1").last_state()
    assert known is not None
    assert known.lived == 0.0
