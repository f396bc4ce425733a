"""The journal keeps what was true and what was about to be done."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from kybernate_agent.instance import Condition, Phase, Record, Transition, Verb
from kybernate_agent.journal import Journal, JournalError
from kybernate_agent.stage import Stage


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


def test_a_durable_step_is_synced_and_the_next_one_is_not(tmp_path: Path) -> None:
    journal, said = Journal(tmp_path / "journal.db"), list[str]()
    journal._db.set_trace_callback(said.append)
    journal.step("a-0", "park", "commit", 1, durable=True)
    journal.step("a-0", "park", "end-processes", 1)
    words = [line.lower() for line in said if not line.lower().startswith("insert")]
    assert words == [
        "pragma synchronous = full", "begin immediate", "commit", "pragma synchronous = normal",
        "begin immediate", "commit",
    ]  # fmt: skip
    assert [(s.step, s.detail) for s in journal.steps("a-0")] == [("commit", {}), ("end-processes", {})]


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
    if verb in (Verb.RESUME, Verb.LEAVE, Verb.END):
        stage.step("done all the same")
    else:
        with pytest.raises(JournalError):
            stage.step("not done")
