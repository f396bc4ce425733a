"""What the agent does next where the kubelet starts the containers, and what it takes for true after it was away."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from kybernate_agent.decide import decide
from kybernate_agent.instance import Leaving, Order, Phase, Policy, Verb, View
from kybernate_agent.recover import LOST_IN_MEMORY, Evidence, Verdict, recover

NOW = 1000.0
POLICY = Policy(suspend_after=60, park_after=600, drain_timeout=30, max_in_flight=600, wake_timeout=120)
DOWN, PARKED = Policy(state="Suspended"), Policy(state="Parked")
UP, AWAKE = Policy(suspend_after=1, state="Running"), Policy(suspend_after=1, keep_awake=True)
R, S, P = Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED
LEAVING = Leaving(signal=15, at=NOW - 1, drain=10, until=NOW + 20)


def view(phase: Phase, **known: Any) -> View:
    base = View(phase=phase, since=NOW - 10, policy=POLICY, last_activity=NOW - 10, kubelet=True)
    return replace(base, **known)


def gone(phase: Phase, **known: Any) -> View:
    """Without its keeper, and without processes."""
    return view(phase, keeper_alive=False, **{"processes_alive": False, **known})


@dataclass
class Case:
    name: str
    view: View
    verb: Verb | None
    next_verb: Verb | None = None


CASES = [
    Case("waits for the kubelet", gone(Phase.PENDING), None),
    Case("takes over what the kubelet started", gone(Phase.PENDING, offered=True), Verb.ADOPT),
    Case("also for what is parked", gone(P, offered=True), Verb.ADOPT),
    Case("a deletion beats it", gone(P, offered=True, deleting=True), Verb.END),
    Case("a dead keeper with processes", gone(R, processes_alive=True), Verb.RESCUE),
    Case("but not one that was given up", gone(R, processes_alive=True, given_up=True), Verb.DISCARD),
    Case("what is parked waits for its next container", gone(P), None),
    Case("also for calls", gone(P, wake_wanted=True), None),
    Case("first its layer is put with its images", gone(P, layer_outside=True), Verb.KEEP),
    Case("also while calls are held", gone(P, layer_outside=True, wake_wanted=True, held_since=NOW - 120), Verb.KEEP),
    Case("not before its processes are safe", gone(P, layer_outside=True, processes_alive=True), Verb.RESCUE),
    Case("nor before a restore is put in order", gone(P, layer_outside=True, half_restored=True), Verb.RESCUE),
    Case("nor where it was given up", gone(P, layer_outside=True, given_up=True), Verb.DISCARD),
    Case("nor for one that came", gone(P, layer_outside=True, offered=True), Verb.ADOPT),
    Case("a keeper that died while it restored", gone(P, wake_wanted=True, half_restored=True), Verb.RESCUE),
    Case("also for a state that was given up", gone(P, given_up=True, half_restored=True), Verb.DISCARD),
    Case("which are refused in time", gone(P, wake_wanted=True, held_since=NOW - 120), Verb.RESET),
    Case("ended while parked: the state stays", gone(P, killed=True), None),
    Case("given up: it goes", gone(P, killed=True, given_up=True), Verb.DISCARD),
    Case("given up, not ended yet", view(P, given_up=True), None),
    Case("its container ended", gone(R), Verb.DISCARD),
    Case("ended right after its restore", gone(R, unproven=True), Verb.RESCUE),
    Case("killed right after its restore", gone(R, unproven=True, killed=True), Verb.DISCARD),
    Case("ended while in RAM", gone(S), Verb.DISCARD),
    Case("lost, it waits", gone(Phase.LOST), None),
    Case("lost, it may begin anew", gone(Phase.LOST, anew=True), Verb.DISCARD),
    Case("onStateLost: Start is no reason to lose a state", gone(P, anew=True), None),
    # Its pod goes.
    Case("leaves awake: drains", view(R, leaving=LEAVING, in_flight_since=NOW - 1), None, Verb.SUSPEND),
    Case("not for ever", view(R, leaving=LEAVING, in_flight_since=None), Verb.SUSPEND),
    Case("leaves from RAM", view(S, leaving=LEAVING), Verb.PARK),
    Case("calls do not wake it any more", view(S, leaving=LEAVING, wake_wanted=True), Verb.PARK),
    Case("leaves parked", view(P, leaving=LEAVING, wake_wanted=True), Verb.LEAVE),
    # Told to end, it is at it.
    Case("at its end it does not sleep, however idle", view(R, ending=True, last_activity=0, since=0), None),
    Case("nor by an order", view(R, ending=True, order=Order(Verb.PARK, NOW)), None),
    Case("nor for good", view(R, ending=True, policy=DOWN), None),
    Case("nor is it copied", view(R, ending=True, copy_wanted=True), None),
    Case("its images go in time", view(R, ending=True, unproven=True, prove_at=NOW), Verb.PROVE),
    # Ordered for good.
    Case("down: suspends", view(R, policy=DOWN), Verb.SUSPEND),
    Case("down: drains", view(R, policy=DOWN, in_flight_since=NOW - 1), None, Verb.SUSPEND),
    Case("down: not for ever", view(R, policy=DOWN, in_flight_since=NOW - 40, since=NOW - 50), Verb.SUSPEND),
    Case("down: stays", view(S, policy=DOWN, wake_wanted=True), None),
    Case("down: refuses at once", view(S, policy=DOWN, held_since=NOW), Verb.RESET),
    Case("further down", view(S, policy=PARKED), Verb.PARK),
    Case("parked for good: refuses at once", view(P, policy=PARKED, held_since=NOW, wake_wanted=True), Verb.RESET),
    Case("up: wakes", view(P, policy=UP), Verb.RESUME),
    Case("up: stays", view(R, policy=UP, since=0, last_activity=0), None),
    Case("one of minAwake wakes", view(S, policy=AWAKE), Verb.RESUME),
    Case("a person's order is above that", view(R, policy=AWAKE, order=Order(Verb.PARK, NOW)), Verb.SUSPEND),
    Case("another pod is the instance: it stays asleep", view(P, fenced=True, wake_wanted=True), None),
    Case("and refuses", view(P, fenced=True, held_since=NOW), Verb.RESET),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_decide(case: Case) -> None:
    decision = decide(case.view, NOW)
    assert decision.verb == case.verb
    assert case.next_verb is None or decision.next_verb == case.next_verb


def leaving(**known: Any) -> Leaving:
    return Leaving(**{"signal": 15, "at": NOW - 1, "drain": 10.0, "until": NOW + 20, **known})


def test_a_dump_that_came_to_nothing_is_tried_again_only_for_a_reason_that_passes() -> None:
    assert decide(view(S, leaving=leaving(again=True)), NOW).verb == Verb.RESUME
    assert decide(view(S, leaving=leaving(failed=True)), NOW).verb == Verb.LEAVE
    assert decide(view(R, leaving=leaving(failed=True)), NOW).verb == Verb.LEAVE


def test_one_that_cannot_be_suspended_is_told_in_time() -> None:
    paused = view(R, leaving=leaving(), not_before={Verb.SUSPEND: NOW + 1})
    assert decide(paused, NOW).verb is None
    assert decide(paused, NOW).ask_at == NOW + 1
    assert decide(view(R, leaving=leaving(until=NOW)), NOW).verb == Verb.LEAVE


def test_one_that_is_to_end_gracefully_is_woken_first() -> None:
    assert decide(view(P, leaving=leaving(wake=True), given_up=True), NOW).verb == Verb.RESUME
    assert decide(view(R, leaving=leaving(wake=True), given_up=True), NOW).verb == Verb.LEAVE


def test_a_drain_ends_in_time() -> None:
    late = leaving(at=NOW - 11)
    assert decide(view(R, leaving=late, in_flight_since=NOW - 1), NOW).verb == Verb.SUSPEND


def test_the_kubelet_is_never_forestalled() -> None:
    """Whatever is known: no verb that starts a container."""
    for phase in Phase:
        for alive in (False, True):
            for killed in (False, True):
                found = decide(gone(phase, processes_alive=alive, killed=killed), NOW)
                assert found.verb != Verb.START


BASE = Evidence(
    phase=R, epoch=3, unproven=0, verb=None, step="", keeper=None, processes_alive=False, epochs=(), kubelet=True
)  # fmt: skip
NO_IMAGES = "it was asleep, and no verified images of it exist"
ORPHANED = "its keeper died, its processes live"
RECOVER = [
    ("ran when the node went", BASE, Verdict(Phase.BACKOFF, 3, message="its container ended meanwhile")),
    ("slept in RAM then: said", replace(BASE, phase=S), Verdict(Phase.PENDING, 3, message=LOST_IN_MEMORY)),
    ("parked then", replace(BASE, phase=P, epochs=(3,)), Verdict(P, 3)),
    ("awaits its restore", replace(BASE, phase=P, keeper="awaiting-restore", epochs=(3,)), Verdict(P, 3)),
    ("its images are gone", replace(BASE, phase=P), Verdict(Phase.LOST, 3, message=NO_IMAGES)),
    ("runs", replace(BASE, keeper="running", processes_alive=True), Verdict(R, 3)),
    ("its keeper is dead", replace(BASE, processes_alive=True), Verdict(R, 3, message=ORPHANED)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "found", "want"), RECOVER, ids=[name for name, _, _ in RECOVER])
def test_recover(name: str, found: Evidence, want: Verdict) -> None:
    assert recover(found) == want
