"""What the agent takes for true after it was away."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from kybernate_agent.instance import Phase, Verb
from kybernate_agent.recover import Evidence, Verdict, recover

R, S, P = Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED
BASE = Evidence(phase=R, epoch=3, unproven=0, verb=None, step="", keeper=None, processes_alive=True, epochs=())


@dataclass
class Case:
    name: str
    found: Evidence
    want: Verdict


def found(**known: Any) -> Evidence:
    return replace(BASE, **known)


CASES = [
    Case("awake between verbs", found(keeper="running"), Verdict(R, 3)),
    Case("asleep in RAM", found(phase=S, keeper="frozen"), Verdict(S, 3)),
    Case(
        "killed between rule and freeze",
        found(verb=Verb.SUSPEND, step="hold", keeper="running"), Verdict(R, 3),
    ),
    Case("killed after the freeze", found(verb=Verb.SUSPEND, step="freeze", keeper="frozen"), Verdict(S, 3)),
    Case("a dump that came to nothing", found(phase=S, verb=Verb.PARK, step="dump", keeper="frozen"), Verdict(S, 3)),
    Case(
        "a dump committed, then vetoed",
        found(phase=S, verb=Verb.PARK, step="commit", keeper="frozen", epochs=(4,)), Verdict(S, 4, retire=(4,)),
    ),
    Case(
        "a dump that ended while the agent was away",
        found(phase=S, verb=Verb.PARK, step="end-processes", keeper="parked", processes_alive=False, epochs=(4, 3)),
        Verdict(P, 4, retire=(3,)),
    ),
    Case("parked", found(phase=P, keeper="parked", processes_alive=False, epochs=(3,)), Verdict(P, 3)),
    Case(
        "parked, images gone: said",
        found(phase=P, keeper="parked", processes_alive=False),
        Verdict(Phase.LOST, 3, message="it was asleep, and no verified images of it exist"),
    ),
    Case(
        "parked, only an older epoch: said",
        found(phase=P, keeper="parked", processes_alive=False, epochs=(2,)),
        Verdict(Phase.LOST, 3, message="images of epoch 2 exist, but the instance had come to epoch 3"),
    ),
    Case(
        "restored, not yet said so",
        found(phase=P, verb=Verb.RESUME, step="restore", keeper="running", epochs=(3,)),
        Verdict(R, 3, unproven=3),
    ),
    Case(
        "restore cut short",
        found(phase=P, verb=Verb.RESUME, step="restore", keeper="parked", processes_alive=False, epochs=(3,)),
        Verdict(P, 3, wake=True),
    ),
    Case(
        "cut off after its images went, before that was on the disk: it ran",
        found(verb=Verb.PROVE, step="retire", unproven=3, processes_alive=False),
        Verdict(Phase.BACKOFF, 3, message="its container ended meanwhile"),
    ),
    Case(
        "cut off while its images went: it had lived",
        found(verb=Verb.PROVE, step="retire", unproven=3, processes_alive=False, epochs=(3,)),
        Verdict(Phase.BACKOFF, 3, retire=(3,), message="its container ended meanwhile"),
    ),
    Case("ended right after its restore", found(unproven=3, processes_alive=False, epochs=(3,)), Verdict(P, 3)),
    Case(
        "ended long after its restore: its images are of long ago",
        found(unproven=3, processes_alive=False, epochs=(3,), lived=True),
        Verdict(Phase.BACKOFF, 3, retire=(3,), message="its container ended meanwhile"),
    ),
    Case(
        "the same, and nobody was there to say that it was restored",
        found(phase=P, verb=Verb.RESUME, step="restore", processes_alive=False, epochs=(3,), lived=True),
        Verdict(Phase.BACKOFF, 3, retire=(3,), message="its container ended meanwhile"),
    ),
    Case(
        "restored, and ended at once",
        found(phase=P, verb=Verb.RESUME, step="restore", processes_alive=False, epochs=(3,)),
        Verdict(P, 3, wake=True),
    ),
    Case("unproven", found(unproven=3, keeper="running", epochs=(3,)), Verdict(R, 3, unproven=3)),
    Case(
        "keeper dead, processes alive",
        found(phase=S), Verdict(S, 3, message="its keeper died, its processes live"),
    ),
    Case("keeper dead while parked", found(phase=P, processes_alive=False, epochs=(3,)), Verdict(P, 3)),
    Case(
        "ended while away",
        found(processes_alive=False), Verdict(Phase.BACKOFF, 3, message="its container ended meanwhile"),
    ),
    Case(
        "start cut short",
        found(phase=Phase.PENDING, verb=Verb.START, processes_alive=False), Verdict(Phase.PENDING, 3),
    ),
    Case(
        "gone while in RAM: said",
        found(phase=S, processes_alive=False),
        Verdict(Phase.LOST, 3, message="it was asleep, and no verified images of it exist"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_recover(case: Case) -> None:
    assert recover(case.found) == case.want


def test_living_processes_are_never_restored_a_second_time() -> None:
    """Whatever the journal says: with a keeper that holds processes, no verdict leads to a restore."""
    for phase in Phase:
        for verb in [None, *Verb]:
            for keeper in ("running", "frozen", "created"):
                for epochs in ((), (3,), (4, 3)):
                    verdict = recover(found(phase=phase, verb=verb, keeper=keeper, epochs=epochs))
                    assert verdict.phase in (R, S)


def test_a_sleeper_without_images_is_never_started_in_silence() -> None:
    for verb in [None, Verb.PARK, Verb.RESUME, Verb.RESCUE]:
        for phase in (S, P):
            assert recover(found(phase=phase, verb=verb, processes_alive=False)).phase == Phase.LOST


def test_one_that_slept_is_not_begun_anew_for_how_long_it_ran_before() -> None:
    for verb in [None, Verb.PARK, Verb.RESCUE]:
        for phase in (S, P):
            verdict = recover(found(phase=phase, verb=verb, processes_alive=False, epochs=(3,), lived=True))
            assert (verdict.phase, verdict.epoch, verdict.retire) == (P, 3, ())
