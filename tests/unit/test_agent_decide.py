"""What the agent does next, as a table, and over a long random life."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from kybernate_agent.decide import Decision, decide
from kybernate_agent.instance import Order, Phase, Policy, Verb, View

NOW = 1000.0
POLICY = Policy(suspend_after=60, park_after=600, drain_timeout=30, max_in_flight=600, wake_timeout=120)


def view(phase: Phase, **known: Any) -> View:
    return replace(View(phase=phase, since=NOW - 10, policy=POLICY, last_activity=NOW - 10), **known)


@dataclass
class Case:
    name: str
    view: View
    verb: Verb | None
    next_verb: Verb | None = None
    next_at: float | None = None


R, S, P = Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED
CASES = [
    Case("a new instance is started", view(Phase.PENDING), Verb.START),
    Case("a failed start waits", view(Phase.PENDING, not_before={Verb.START: NOW + 5}), None, Verb.START, NOW + 5),
    Case("a busy one stays awake", view(R), None, Verb.SUSPEND, NOW + 50),
    Case("an idle one is suspended", view(R, since=NOW - 99, last_activity=NOW - 60), Verb.SUSPEND),
    Case("one just woken is not", view(R, since=NOW - 1, last_activity=NOW - 99), None, Verb.SUSPEND, NOW + 59),
    Case("a silent request holds it", view(R, since=NOW - 99, last_activity=NOW - 90, in_flight_since=NOW - 90), None),
    Case("but not for ever", view(R, since=0, last_activity=NOW - 700, in_flight_since=NOW - 600), Verb.SUSPEND),
    Case("without suspendAfter it stays", view(R, since=0, last_activity=0, policy=Policy()), None),
    Case("an order suspends at once", view(R, order=Order(Verb.SUSPEND, NOW)), Verb.SUSPEND),
    Case("an order to park suspends first", view(R, order=Order(Verb.PARK, NOW)), Verb.SUSPEND),
    Case(
        "an order lets a request end",
        view(R, order=Order(Verb.SUSPEND, NOW - 1), in_flight_since=NOW - 2),
        None,
        Verb.SUSPEND,
        NOW + 29,
    ),
    Case(
        "not longer than drainTimeout",
        view(R, order=Order(Verb.SUSPEND, NOW - 30), in_flight_since=NOW - 40),
        Verb.SUSPEND,
    ),
    Case("a suspended one is parked in time", view(S, since=NOW - 600), Verb.PARK),
    Case("not before", view(S), None, Verb.PARK, NOW + 590),
    Case("not while parking backs off", view(S, since=0, not_before={Verb.PARK: NOW + 7}), None, Verb.PARK, NOW + 7),
    Case("a call wakes from RAM", view(S, wake_wanted=True), Verb.RESUME),
    Case("a call beats parking", view(S, since=0, wake_wanted=True, order=Order(Verb.PARK, NOW)), Verb.RESUME),
    Case("a call wakes from NVME", view(P, wake_wanted=True), Verb.RESUME),
    Case(
        "a failed restore waits",
        view(P, wake_wanted=True, not_before={Verb.RESUME: NOW + 5}),
        None,
        Verb.RESUME,
        NOW + 5,
    ),
    Case("held too long: reset", view(P, wake_wanted=True, held_since=NOW - 120), Verb.RESET),
    Case("a parked one stays", view(P, since=0), None),
    Case("a dead keeper with processes", view(S, keeper_alive=False), Verb.RESCUE),
    Case("a dead keeper with images", view(P, keeper_alive=False, processes_alive=False), Verb.RESCUE),
    Case("a crash after a restore", view(R, keeper_alive=False, processes_alive=False, unproven=True), Verb.RESCUE),
    Case("a sleeper that is gone: rescued or said", view(S, keeper_alive=False, processes_alive=False), Verb.RESCUE),
    Case("an end that fails waits", view(R, deleting=True, not_before={Verb.END: NOW + 3}), None, Verb.END, NOW + 3),
    Case("a container that ended", view(R, keeper_alive=False, processes_alive=False), Verb.START),
    Case("one ended while parked", view(P, keeper_alive=False, processes_alive=False, killed=True), Verb.START),
    Case("restored and alive", view(R, unproven=True, prove_at=NOW), Verb.PROVE),
    Case("a deletion beats everything", view(P, deleting=True, wake_wanted=True, keeper_alive=False), Verb.END),
    Case("a lost one waits for a person", view(Phase.LOST, wake_wanted=True), None),
    Case("its callers are told", view(Phase.LOST, held_since=NOW - 1), Verb.RESET),
    Case("one that starts", view(R, since=NOW - 99, starting=True), None),
    Case("an order puts to sleep what starts", view(R, starting=True, order=Order(Verb.SUSPEND, NOW)), Verb.SUSPEND),
    Case("whose calls nobody hears stays as it is", view(R, since=0, last_activity=0, deaf_until=NOW + 5), None),
    Case("asleep, too", view(S, since=0, wake_wanted=True, deaf_until=NOW + 5), None),
    Case("what it came from goes", view(R, unproven=True, prove_at=NOW, deaf_until=NOW + 5), Verb.PROVE),
    Case("not while it sleeps", view(S, unproven=True, prove_at=NOW, deaf_until=NOW + 5), None),
    Case("but it is ended", view(P, deleting=True, deaf_until=NOW + 5), Verb.END),
    Case("and rescued", view(S, keeper_alive=False, deaf_until=NOW + 5), Verb.RESCUE),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_decide(case: Case) -> None:
    decision = decide(case.view, NOW)
    assert decision.verb == case.verb
    if case.next_verb is not None:
        assert decision.next_verb == case.next_verb
        assert decision.next_at == pytest.approx(case.next_at)


def test_nothing_is_next_for_one_that_starts() -> None:
    """Its idle time has not begun, so nobody can say when it ends."""
    found = decide(view(R, starting=True), NOW)
    assert (found.next_verb, found.next_at) == (None, None)
    assert found.ask_at is not None


def test_who_is_deaf_is_asked_again_in_time() -> None:
    for phase in (R, S, P, Phase.LOST):
        assert decide(view(phase, wake_wanted=True, deaf_until=NOW + 5), NOW).ask_at == NOW + 5
    assert decide(view(R, unproven=True, prove_at=NOW + 2, deaf_until=NOW + 5), NOW).ask_at == NOW + 2


def test_a_waiting_decision_never_asks_later_than_it_must() -> None:
    """Over random views: with nothing to do now, asking again at `ask_at` is early enough for the timeout of a call."""
    rng = random.Random(7)
    for _ in range(20_000):
        v = View(
            phase=rng.choice(list(Phase)),
            since=NOW - rng.uniform(0, 900),
            policy=rng.choice([POLICY, Policy()]),
            last_activity=NOW - rng.uniform(0, 900),
            wake_wanted=rng.random() < 0.3,
            held_since=rng.choice([None, NOW - rng.uniform(0, 119)]),
            not_before={Verb.RESUME: NOW + rng.uniform(-9, 300)},
            in_flight_since=rng.choice([None, NOW - rng.uniform(0, 900)]),
            unproven=rng.random() < 0.3,
            prove_at=NOW + 1,
        )
        decision: Decision = decide(v, NOW)
        if decision.verb is None and v.held_since is not None and v.phase in (S, P):
            assert decision.ask_at is not None
            assert decision.ask_at <= v.held_since + v.policy.wake_timeout


def test_an_instance_left_alone_sinks_to_the_lowest_tier_and_stays() -> None:
    v, now, path = view(R, since=NOW, last_activity=NOW), NOW, []
    for _ in range(100_000):
        d = decide(v, now)
        if d.verb is None:
            if d.ask_at is None:
                break
            now = d.ask_at
            continue
        path.append(d.verb)
        v = replace(v, phase={Verb.SUSPEND: S, Verb.PARK: P}[d.verb], since=now)
    assert path == [Verb.SUSPEND, Verb.PARK]
    assert now == pytest.approx(NOW + 660)
