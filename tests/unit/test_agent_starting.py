"""One that is awake and does not serve yet: nothing is next for it, and it is said what it waits for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_actor import actor_in
from kybernate_agent.actor import Actor
from kybernate_agent.cluster.status import essence, status_of
from kybernate_agent.decide import decide
from kybernate_agent.instance import Phase, Policy, Wanted
from kybernate_agent.look import look
from kybernate_agent.traffic.activity import Sample
from kybernate_agent.traffic.sockdiag import Socket, State

LISTENER = Socket(State.LISTEN, b"\xc0\0\2\1", 8080, bytes(4), 0, 1, 10, 0)
ELSEWHERE = replace(LISTENER, local_port=9090, cookie=2)


@pytest.fixture
def actor(tmp_path: Path) -> Actor:
    """Awake, idle after a minute, called at port 8080; `listeners` is what listens in its pod."""
    actor = actor_in(tmp_path, Phase.RUNNING, since=0.0)
    actor.wanted = Wanted(container="app", namespace="team", ports=(8080,), policy=Policy(suspend_after=60))
    watch: Any = SimpleNamespace(close=lambda: None)
    actor._watch = watch
    return actor


def told(actor: Actor, now: float, *listeners: Socket) -> tuple[str, str, object]:
    """What NEXT says, the reason of the condition, and all that makes a status worth a write."""
    traffic: Any = SimpleNamespace(sample=lambda: Sample(listeners, 0), oldest_held_at=lambda: None)
    actor._traffic = traffic
    actor.decision = decide(look(actor, now), now)
    status = status_of(actor, "n1")
    reason = next((each.reason for each in status.conditions if each.type == "Starting"), "")
    return status.next.verb if status.next else "", reason, essence(status)


def test_next_is_empty_until_it_serves(actor: Actor) -> None:
    heard: list[str] = []
    actor.services = replace(actor.services, changed=heard.append)
    loading, waiting, first = told(actor, 1000.0, ELSEWHERE)
    assert (loading, waiting) == ("", "NotListening")
    assert told(actor, 2000.0, ELSEWHERE) == (loading, waiting, first), "however long: nothing new is written"
    assert len(heard) == 1

    actor.container_ready = False
    assert told(actor, 2000.0, LISTENER)[:2] == ("", "NotReady")
    actor.container_ready = True
    following, over, last = told(actor, 2001.0, LISTENER)
    assert (following, over) == ("suspend", "")
    assert last != first, "so it is written"
    assert len(heard) == 3
    assert actor.decision.next_at == 2060.0, "its idle time began when it last did not serve"


def test_what_has_gone_to_sleep_does_not_start(actor: Actor) -> None:
    assert told(actor, 1000.0)[1] == "NotListening"
    actor.record.enter(Phase.SUSPENDED, 1001.0)
    assert told(actor, 1002.0)[1] == ""


def test_one_that_never_sleeps_by_itself_waits_for_nothing(actor: Actor) -> None:
    actor.wanted = Wanted(container="app", namespace="team", ports=(8080,))
    assert told(actor, 1000.0)[:2] == ("", "")
