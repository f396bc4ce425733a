"""The machine's clock may be set at any time, and be wrong when the agent starts: it moves no decision."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kybernate_agent
import pytest
from cluster_actor import actor_in
from kybernate_agent import clock
from kybernate_agent.actor import Actor
from kybernate_agent.cluster.metrics import Metrics
from kybernate_agent.cluster.status import StatusWriter
from kybernate_agent.decide import decide
from kybernate_agent.instance import Condition, Event, Leaving, Phase, Record, Transition, Verb
from kybernate_agent.keepers import KeeperState
from kybernate_agent.look import look
from kybernate_agent.node import Node

AGENT = Path(kybernate_agent.__file__).parent
HOUR = 3600.0
ASK_THE_MACHINE = {
    "clock.py": "once, at the start",
    "journal.py": "when a step was written, for a person",
    "sleep.py": "when images were made",
    "cluster/copying.py": "the same",
    "cluster/checkpoints.py": "when they expire, by whatever agent",
    "cluster/gpunode.py": "a condition's time, which nothing is decided by",
}


def test_nobody_else_asks_the_machine() -> None:
    """Else a clock that is set would move a decision again."""
    asking = {str(path.relative_to(AGENT)) for path in AGENT.rglob("*.py") if "time.time()" in path.read_text()}
    assert asking == set(ASK_THE_MACHINE)


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_a_clock_that_is_set_moves_no_back_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    actor = actor_in(tmp_path, Phase.PARKED, since=clock.now())
    watch: Any = SimpleNamespace(close=lambda: None)
    actor._watch = watch
    actor.call("GET /")
    began = clock.now()
    actor.back_off(Verb.RESUME, 100.0)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step)
    waits = decide(look(actor, clock.now()), clock.now())
    assert (waits.verb, waits.next_verb) == (None, Verb.RESUME)
    assert waits.next_at is not None
    assert 100.0 <= waits.next_at - began < 100.0 + HOUR / 2
    assert clock.now() - began < HOUR / 2
    assert decide(look(actor, began + 100.0 + HOUR / 2), began + 100.0 + HOUR / 2).verb == Verb.RESUME


def ahead(folder: Path, **known: Any) -> Actor:
    """What an agent left whose clock was an hour ahead."""
    later = clock.now() + HOUR
    transition = Transition(at=later, verb="resume", source="Parked", target="Running", seconds=1.0, outcome="done")
    return actor_in(
        folder, Phase.RUNNING, since=later, last_activity=later, history=[transition],
        events=[Event(at=later, type="Normal", reason="Resumed", message="of before")],
        conditions=[Condition(type="Degraded", status="True", reason="RulesStay", at=later)], **known,
    )  # fmt: skip


def test_times_that_lie_in_the_future_are_taken_as_now(tmp_path: Path) -> None:
    now, before = clock.STARTED, clock.STARTED - 50.0
    record = ahead(tmp_path, leaving=Leaving(signal=15, at=now + HOUR, drain=5.0, until=now + HOUR + 20.0)).record
    record.not_later_than(now)
    assert {record.since, record.last_activity, record.history[0].at, record.events[0].at} == {now}
    assert record.conditions[0].at == now
    assert record.leaving is not None
    assert record.leaving.at == now
    assert record.leaving.until == pytest.approx(now + 20.0, rel=0, abs=0.01)
    past = Record(id="a-0", workload="a", since=before, last_activity=before)
    past.not_later_than(now)
    assert (past.since, past.last_activity) == (before, before)


async def test_what_is_new_is_told_and_counted_whatever_the_clock_was_before(tmp_path: Path) -> None:
    actor = ahead(tmp_path)
    (actor.record,) = actor.services.journal.records()  # as the next agent finds it
    recorded: list[str] = []
    recorder: Any = SimpleNamespace(record=lambda about, kind, reason, message: recorded.append(message))
    nobody: Any = None
    writer = StatusWriter(nobody, recorder, "n1", nobody, nobody)
    metrics = Metrics()
    metrics.known(actor.services.journal.records())
    for message in ("first", "second"):
        actor.record.event("Normal", "Resumed", message, clock.now())
        actor.record.note(Transition(at=clock.now(), verb="park", source="", target="", seconds=1.0, outcome="done"))
        writer._tell(actor.record)
        metrics.changed(actor.record.id, actor)
    assert recorded == ["first", "second"]
    assert 'kybernate_transitions_total{verb="park",outcome="done"} 2' in metrics.text([], 0)
    assert "resume" not in metrics.text([], 0)


@pytest.mark.parametrize("known", [True, False])
async def test_what_was_restored_is_proven_from_when_it_began_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """However often the agent begins anew meanwhile. A keeper of before does not tell."""
    actor = actor_in(tmp_path, Phase.RUNNING, unproven=3)
    ran_at = clock.since_boot() - 50.0

    async def adopt_keeper() -> None:
        actor.last_keeper = KeeperState(state="running", container="c1", keeper_pid=1, ran_at=ran_at if known else 0.0)

    async def see_to(_: Actor) -> None: ...

    monkeypatch.setattr(actor, "adopt_keeper", adopt_keeper)
    monkeypatch.setattr("kybernate_agent.network.see_to", see_to)
    began, seconds = clock.now(), actor.services.config.prove_seconds
    await Node(actor.services)._take_over(actor, Phase.RUNNING, wake=False)
    if known:
        assert actor.prove_at == pytest.approx(clock.at(ran_at) + seconds, rel=0, abs=0.01)
    else:
        assert actor.prove_at >= began + seconds


LIVED = [(0.0, True), (1.9, True), (2.1, False), (9000.0, False)]


@pytest.mark.parametrize(("lived", "unproven"), LIVED)
def test_one_that_ended_is_proven_by_how_long_it_lived(tmp_path: Path, lived: float, unproven: bool) -> None:
    """Also where nobody could say so in time."""
    actor = actor_in(tmp_path, Phase.RUNNING, unproven=3)
    assert actor.services.config.prove_seconds == 2.0
    actor.last_keeper = KeeperState(state="ended", container="c1", keeper_pid=1, ran_at=500.0, ended_at=500.0 + lived)
    view = look(actor, clock.now())
    assert view.unproven is unproven
    assert decide(view, clock.now()).verb == (Verb.RESCUE if unproven else Verb.DISCARD)
