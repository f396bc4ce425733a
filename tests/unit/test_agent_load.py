"""How busy an instance is, in a word that changes rarely."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_actor import actor_in
from kybernate_agent.actor import Actor
from kybernate_agent.cluster.status import status_of
from kybernate_agent.decide import decide
from kybernate_agent.instance import Phase, Policy, Wanted
from kybernate_agent.look import look
from kybernate_agent.traffic.activity import Sample
from kybernate_agent.traffic.load import Load, fold_load
from kybernate_agent.traffic.sockdiag import Socket, State
from msgspec import structs

LISTENER = Socket(State.LISTEN, b"\xc0\0\2\1", 8080, bytes(4), 0, 1, 10, 0)


def words(target: int, *held: tuple[float, int]) -> list[str]:
    """The words one after the other, looking twice a second; each of `held`: so many seconds so many requests."""
    load, now, told = Load(), 100.0, [Load().word]
    for seconds, requests in held:
        for _ in range(int(seconds * 2)):
            load, now = fold_load(load, requests, target, now), now + 0.5
            told.append(load.word)
    return [word for word, _ in itertools.groupby(told)]


TABLE = [
    ("nothing is known at first", 2, [(0.5, 9)], ["Some"]),
    ("nobody calls", 2, [(10.5, 0)], ["Some", "Low"]),
    ("not yet", 2, [(10, 0)], ["Some"]),
    ("as many as the target", 2, [(10.5, 2)], ["Some", "Full"]),
    ("not yet as long", 2, [(10, 2)], ["Some"]),
    ("twice as many, sooner", 2, [(5.5, 4)], ["Some", "Full"]),
    ("four times as many", 2, [(3, 8)], ["Some", "Full"]),
    ("no sooner than that", 2, [(2.5, 99)], ["Some"]),
    ("fewer", 3, [(60, 2)], ["Some"]),
    ("fewer than a quarter", 9, [(60, 2)], ["Some", "Low"]),
    ("a quarter", 8, [(60, 2)], ["Some"]),
    ("a burst that is over", 2, [(1, 99), (30, 1)], ["Some"]),
    ("pauses between", 2, [(3.5, 3), (1.5, 0)] * 20, ["Some", "Full"]),
    ("short ones, one after the other", 1, [(0.5, 1), (0.5, 0)] * 60, ["Some"]),
    ("one after the other, half of the time each", 1, [(3, 1), (3, 0)] * 20, ["Some"]),
    ("three quarters are left", 4, [(11, 4), (30, 3)], ["Some", "Full"]),
    ("fewer are left", 4, [(11, 4), (30, 2)], ["Some", "Full", "Some"]),
    ("all end at once", 2, [(11, 2), (20, 0)], ["Some", "Full", "Some", "Low"]),
    ("a call into the calm", 2, [(11, 0), (2, 1), (30, 0)], ["Some", "Low"]),
    ("a longer one", 2, [(11, 0), (11, 1)], ["Some", "Low", "Some"]),
    ("a target of one", 1, [(11, 1), (20, 0), (11, 1)], ["Some", "Full", "Some", "Low", "Some", "Full"]),
    ("from calm to storm", 4, [(11, 0), (6, 9)], ["Some", "Low", "Some", "Full"]),
]


@pytest.mark.parametrize(("target", "held", "want"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_words(target: int, held: list[tuple[float, int]], want: list[str]) -> None:
    assert words(target, *held) == want


def serving(requests: int, age_ms: int) -> list[Socket]:
    """Connections whose request came `age_ms` ago and is not answered."""
    return [
        Socket(
            State.ESTABLISHED, b"\xc0\0\2\1", 8080, b"\xc0\0\2\2", 5000 + n, 10 + n, 20 + n, 0, 100, 0, 2**31, age_ms
        )
        for n in range(requests)
    ]


WANTED = Wanted(
    container="app", namespace="team", ports=(8080,),
    policy=Policy(suspend_after=60, target_in_flight=2, max_in_flight=600),
)  # fmt: skip
KEPT = structs.replace(WANTED, policy=structs.replace(WANTED.policy, keep_awake=True))


@pytest.fixture
def actor(tmp_path: Path) -> Actor:
    actor = actor_in(tmp_path, Phase.RUNNING, since=0.0)
    actor.wanted = WANTED
    watch: Any = SimpleNamespace(close=lambda: None)
    actor._watch = watch
    return actor


def just_woken(actor: Actor) -> None:
    """A look at it while it slept."""
    actor.record.enter(Phase.SUSPENDED, 0.0)
    assert told(actor, 990.0) == ""
    actor.record.enter(Phase.RUNNING, 1000.0)


def told(actor: Actor, now: float, sockets: Iterable[Socket] = ()) -> str:
    """What the status says; it is asked again within half a second."""
    traffic: Any = SimpleNamespace(sample=lambda: Sample((LISTENER, *sockets), 0), oldest_held_at=lambda: None)
    actor._traffic = traffic
    actor.decision = decide(look(actor, now), now)
    if actor.record.phase == Phase.RUNNING and actor.policy.target_in_flight:
        assert actor.decision.ask_at == now + 0.5
    return status_of(actor, "n1").load


@pytest.mark.parametrize("kept", [False, True], ids=["by itself", "kept awake"])
def test_a_status_says_it_and_only_a_change_is_news(actor: Actor, kept: bool) -> None:
    if kept:
        actor.wanted = KEPT
    heard: list[str] = []
    actor.services = replace(actor.services, changed=heard.append)
    just_woken(actor)
    assert told(actor, 1000.0, serving(2, 10)) == "Some"
    for step in range(1, 60):
        told(actor, 1000.0 + step / 2, serving(2, 10 + step * 500))
    assert (status_of(actor, "n1").load, len(heard)) == ("Full", 1)
    for step in range(60, 120):
        told(actor, 1000.0 + step / 2)
    assert (status_of(actor, "n1").load, len(heard)) == ("Low", 3), "by way of Some"


def test_requests_that_nobody_answers_count_no_longer_than_they_hold_it_awake(actor: Actor) -> None:
    actor.wanted = KEPT
    for step in range(24):
        told(actor, 1000.0 + step / 2, serving(2, 10 + step * 500))
    assert status_of(actor, "n1").load == "Full"
    for step in range(50):
        told(actor, 1700.0 + step / 2, serving(2, 700_010 + step * 500))
    assert status_of(actor, "n1").load == "Low"


def test_a_sleeper_says_nothing_and_begins_anew(actor: Actor) -> None:
    for step in range(10):
        told(actor, 1000.0 + step / 2, serving(2, 10 + step * 500))
    actor.record.enter(Phase.SUSPENDED, 1010.0)
    assert status_of(actor, "n1").load == ""
    assert told(actor, 1011.0) == ""
    actor.record.enter(Phase.RUNNING, 1012.0)
    assert told(actor, 1012.0, serving(2, 10)) == "Some"


@pytest.mark.parametrize(("requests", "word"), [(0, "Low"), (1, "Some"), (2, "Full")])
def test_an_agent_that_begins_anew_says_nothing_before_it_knows(actor: Actor, requests: int, word: str) -> None:
    """Else one that is kept awake because this one is Full would be let sleep, and woken again."""
    for step in range(20):
        assert told(actor, 1000.0 + step / 2, serving(requests, 10 + step * 500)) == ""
    assert told(actor, 1010.0, serving(requests, 10_010)) == word


def test_without_a_target_nothing_is_said(actor: Actor) -> None:
    actor.wanted = Wanted(container="app", namespace="team", ports=(8080,), policy=Policy(suspend_after=60))
    for step in range(10):
        assert told(actor, 1000.0 + step / 2, serving(2, 10 + step * 500)) == ""
    assert actor.load is None
