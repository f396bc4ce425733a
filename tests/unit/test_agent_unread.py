"""Data that nobody reads keeps nobody awake: only what the decision to sleep did not know of undoes the sleep."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_actor import actor_in
from kybernate_agent import clock, network, verbs
from kybernate_agent.actor import Actor
from kybernate_agent.decide import decide
from kybernate_agent.instance import Phase, Policy, Verb, Wanted
from kybernate_agent.keepers import KeeperState
from kybernate_agent.look import look
from kybernate_agent.traffic.activity import Sample
from kybernate_agent.traffic.pod import Mode, PodTraffic
from kybernate_agent.traffic.sockdiag import Socket, State

LOCAL, REMOTE = b"\xc0\0\2\1", b"\xc0\0\2\t"
LISTENER = Socket(State.LISTEN, LOCAL, 8080, bytes(4), 0, 1, 10, 0)
POOLED = Socket(State.CLOSE_WAIT, LOCAL, 50000, REMOTE, 5432, 2, 11, 31, 131, 200, 90000, 90000)
"""An outgoing connection that its server has closed, with last words that nobody reads before the next use."""
SERVED = Socket(State.ESTABLISHED, LOCAL, 8080, REMOTE, 4242, 3, 12, 7, 107, 200, 700_000, 700_000)
"""A request that the application does not even read, for longer than maxInFlight."""
NEW = replace(SERVED, cookie=9, remote_port=4343, received_age_ms=0)


class Pod(PodTraffic):
    """A pod with `sockets` and without a kernel: rules are put down, and `coming` comes once they stand."""

    def __init__(self, *sockets: Socket) -> None:
        super().__init__("/run/netns/x", (8080,), lambda _: None)
        self.sockets, self.coming = list(sockets), list[Socket]()

    def _sockets(self) -> Any:
        return SimpleNamespace(diag=SimpleNamespace(dump=lambda: self.sockets))

    def sample(self) -> Sample:
        return Sample(tuple(self.sockets), 0)

    async def open(self) -> None: ...

    async def watch(self, extra_local_ports: Iterable[int] = ()) -> None:
        self._mode, self._ruled = Mode.WATCHING, frozenset({8080, *extra_local_ports})
        self.sockets.extend(self.coming)

    async def release(self) -> None:
        self._mode, self._ruled = Mode.OPEN, None
        self.sockets = [one for one in self.sockets if one not in self.coming]


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Actor:
    """Awake, and to sleep after a minute."""
    actor = actor_in(tmp_path, Phase.RUNNING)
    actor.wanted = Wanted(container="app", namespace="team", ports=(8080,), policy=Policy(suspend_after=60))
    watch: Any = SimpleNamespace(close=lambda: None)
    actor._watch = watch

    async def state() -> KeeperState:
        return KeeperState(state="running", container="c1", keeper_pid=1)

    async def nothing(*_: Any) -> None: ...

    async def ports(*_: Any) -> list[int]:
        return [8080, 50000]

    keeper: Any = SimpleNamespace(container="c1", state=state, freeze=nothing, thaw=nothing)
    actor._keeper = keeper
    monkeypatch.setattr(actor, "own_ports", ports)
    monkeypatch.setattr("kybernate_agent.processes.pids_of", lambda _: [])
    return actor


async def idle(actor: Actor, pod: Pod, *, now: float) -> None:
    """Nothing moved for a minute, so it is to be suspended; and that is tried."""
    actor._traffic, actor.activity, actor.record.last_activity = pod, None, 0.0
    look(actor, now - 61)
    assert decide(look(actor, now), now).verb == Verb.SUSPEND
    await verbs.perform(actor, Verb.SUSPEND, "idle for 60 s")


STALE = [("outgoing", POOLED), ("served", SERVED)]


@pytest.mark.parametrize(("name", "left"), STALE, ids=[name for name, _ in STALE])
async def test_what_lay_unread_before_keeps_it_neither_awake_nor_wakes_it(
    actor: Actor, monkeypatch: pytest.MonkeyPatch, name: str, left: Socket
) -> None:
    await idle(actor, Pod(LISTENER, left), now=clock.now())
    assert actor.record.phase == Phase.SUSPENDED
    (kept,) = actor.services.journal.records()
    assert kept.pod.unread == {left.cookie: (left.received, left.unread)}, "the next agent knows it"

    for sockets, woken in (([LISTENER, left], False), ([LISTENER, left, NEW], True)):
        after = Pod(*sockets)
        monkeypatch.setattr("kybernate_agent.actor.PodTraffic", lambda *_, after=after: after)
        actor._traffic = None
        await network.see_to(actor)
        assert actor.has_traffic
        assert bool(actor.wake_wanted) is woken


COMES = [
    ("on another connection", NEW),
    ("on the same one", replace(POOLED, received=200, unread=100)),
    ("while the application reads", replace(POOLED, unread=5)),
]


@pytest.mark.parametrize(("name", "comes"), COMES, ids=[name for name, _ in COMES])
async def test_what_comes_after_the_decision_undoes_the_sleep(actor: Actor, name: str, comes: Socket) -> None:
    pod = Pod(LISTENER, POOLED)
    pod.coming = [comes]
    await idle(actor, pod, now=clock.now())
    assert (actor.record.phase, pod.mode) == (Phase.RUNNING, Mode.OPEN)


async def test_a_sleep_that_is_undone_is_tried_again_later_each_time(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever undoes it: a look that finds the same again and again must not be all that the agent does."""
    pauses, pod = list[float](), Pod(LISTENER, POOLED)
    monkeypatch.setattr(actor, "back_off", lambda verb, seconds: pauses.append(seconds))
    pod.coming = [NEW]
    for _ in range(7):
        await idle(actor, pod, now=clock.now())
        assert actor.record.phase == Phase.RUNNING
    assert pauses == [1, 2, 4, 8, 16, 30, 30]

    actor.wanted = Wanted(container="app", namespace="team", policy=Policy(state="Suspended"))
    paused = KeeperState(state="running", container="c1", keeper_pid=1, paused=True)

    async def state() -> KeeperState:
        return paused

    monkeypatch.setattr(actor.keeper, "state", state)
    await verbs.perform(actor, Verb.SUSPEND, "ordered")
    assert pauses[-1] == 1, "who was told to sleep is not kept waiting"


async def test_once_it_sleeps_what_was_counted_is_over(actor: Actor) -> None:
    pod = Pod(LISTENER, POOLED)
    pod.coming = [NEW]
    await idle(actor, pod, now=clock.now())
    assert actor.not_before[Verb.SUSPEND] > 0
    actor.not_before.clear()
    pod.coming = []
    await idle(actor, pod, now=clock.now())
    assert actor.record.phase == Phase.SUSPENDED
    assert actor.failed(Verb.SUSPEND) == 0
