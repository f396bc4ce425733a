"""A pod's network that cannot be taken up is said, and tried again, later each time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_actor import actor_in
from kybernate_agent import network
from kybernate_agent.actor import Actor
from kybernate_agent.instance import Phase, Verb
from kybernate_agent.network import NoTrafficError
from kybernate_agent.traffic.pod import Mode
from kybernate_agent.traffic.rules import RulesError

TAKEN = RulesError(netns="/run/netns/x", program="nft", reason="device or resource busy")


class Pod:
    """The traffic of a pod; `open`, `watch` and `hold` fail as often as `failures` says."""

    def __init__(self, failures: dict[str, int]) -> None:
        self.failures, self.mode, self.closed = failures, Mode.OPEN, 0

    def _may(self, what: str) -> None:
        if self.failures.get(what, 0):
            self.failures[what] -= 1
            raise TAKEN

    async def open(self) -> None:
        self._may("open")

    async def watch(self, ports: list[int]) -> None:
        self._may("watch")
        self.mode = Mode.WATCHING

    async def hold(self, ports: list[int]) -> None:
        self._may("hold")
        self.mode = Mode.HOLDING

    async def release(self) -> None:
        self.mode = Mode.OPEN

    async def close(self) -> None:
        self.closed += 1

    def has_unread(self, known: dict[int, tuple[int, int]]) -> bool:
        return not known


@pytest.fixture
def taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An actor whose keeper lives, in a pod whose traffic fails as given, and the pod."""

    def make(phase: Phase, **failures: int) -> tuple[Actor, Pod]:
        actor, pod = actor_in(tmp_path, phase), Pod(failures)
        watch: Any = SimpleNamespace(close=lambda: None)
        actor._watch = watch
        monkeypatch.setattr("kybernate_agent.actor.PodTraffic", lambda *_: pod)
        return actor, pod

    return make


CASES = [
    (Phase.RUNNING, "open", Mode.OPEN),
    (Phase.LOST, "open", Mode.OPEN),
    (Phase.SUSPENDED, "open", Mode.WATCHING),
    (Phase.SUSPENDED, "watch", Mode.WATCHING),
    (Phase.PARKED, "hold", Mode.HOLDING),
]


@pytest.mark.parametrize(("phase", "step", "mode"), CASES)
async def test_it_is_tried_again_until_it_works(taken_up: Any, phase: Phase, step: str, mode: Mode) -> None:
    actor, pod = taken_up(phase, **{step: 2})
    pauses = []
    for _ in range(2):
        await network.see_to(actor)
        assert not actor.has_traffic
        pauses.append(actor.deaf_until)
        await network.see_to(actor)
        assert actor.deaf_until == pauses[-1], "not before its time has come"
        actor.deaf_until = 0.0
    assert pauses[1] - pauses[0] > 0.5, "later each time"
    (said,) = actor.record.conditions
    assert (said.type, said.reason) == ("Degraded", "NoTraffic")
    assert "device or resource busy" in said.message
    assert len(actor.record.events) == 1, "said once"

    await network.see_to(actor)
    assert actor.has_traffic
    assert (actor.deaf_until, actor.traffic.mode, actor.record.conditions) == (None, mode, [])
    assert bool(actor.wake_wanted) == (phase == Phase.SUSPENDED), "what came meanwhile lies in its sockets"
    assert pod.closed == (0 if step == "open" else 2), "nothing stays open that is opened again"


async def test_a_person_who_waits_is_told(taken_up: Any) -> None:
    actor, _ = taken_up(Phase.SUSPENDED, open=1)
    done = actor.orders.give(Verb.RESUME)
    await network.see_to(actor)
    assert isinstance(done.exception(), NoTrafficError)
