"""`wake.targetInFlight` in a closed loop: clients, kube-proxy, agents that count, the controller's real plan.

Real are the plan and the word that an agent says of its load. Played are clients that each have one request in flight
all the time, a proxy that leads each to a pod of the endpoints (evenly, or as the dice say, which is what kube-proxy
does) and learns of changes a second later, sleep and wake. What must not be under a load that stays the same: that
somebody is taken out and put back, or woken and let sleep, for ever.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from controller_objects import Case, gi, gw, planned, pod
from kybernate_agent.traffic.load import Load, fold_load
from kybernate_controller import actions

STEP = 0.5
LAG = 2
"""Steps until an agent's word is at the controller, and until a gate is in the proxy's rules."""


@dataclass
class One:
    """An instance: what is true of it, and what its objects say."""

    asleep: bool = False
    waking: int = 0
    keep: bool = False
    gate: str | bool = True
    requests: list[float] = field(default_factory=list)
    """When each of them ends."""
    load: Load = field(default_factory=Load)
    idle_since: float = 0.0
    told: list[str] = field(default_factory=lambda: [""] * LAG)
    led: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.led = [self.gate is True] * LAG


class Loop:
    """`clients` requests at any time, each of `seconds` on average."""

    def __init__(
        self, target: int, clients: int, seconds: float, *, even: bool, replicas: int = 4, suspend: float = 60.0
    ) -> None:
        self.dice, self.even = random.Random(clients), even
        self.workload = gw(
            replicas=replicas,
            wake={"targetInFlight": target},
            idle={"suspendAfter": f"{suspend:g}s", "releaseRequests": False},
        )
        self.target, self.clients, self.seconds, self.suspend = target, clients, seconds, suspend
        self.all = [One(asleep=n > 0, gate="Asleep" if n else True) for n in range(replicas)]
        self.now = 0.0
        self.did: Counter[str] = Counter()
        self.settled: object = None

    def run(self, seconds: float) -> Counter[str]:
        """What happened in that time."""
        self.did = Counter()
        for _ in range(round(seconds / STEP)):
            self.now += STEP
            self._call()
            for one in self.all:
                self._look(one)
            self._plan()
        return self.did

    @property
    def awake(self) -> int:
        return sum(not one.asleep for one in self.all)

    def _call(self) -> None:
        """Requests end, and each of the clients has another one."""
        for one in self.all:
            if not one.asleep:
                one.requests = [until for until in one.requests if until > self.now]
        led = [one for one in self.all if one.led[0]]
        for _ in range(self.clients - sum(len(one.requests) for one in self.all)):
            if not led:
                return
            one = min(led, key=lambda each: len(each.requests)) if self.even else self.dice.choice(led)
            one.requests.append(self.now + self.dice.expovariate(1 / self.seconds))

    def _look(self, one: One) -> None:
        """What an agent does within half a second."""
        if one.asleep:
            one.waking = one.waking + 1 if one.keep or one.requests else 0
            if one.waking > LAG:
                one.asleep, one.waking, one.load, one.idle_since = False, 0, Load(), self.now
                self.did["wakes"] += 1
        else:
            before, one.load = one.load, fold_load(one.load, len(one.requests), self.target, self.now)
            self.did["words"] += one.load.word != before.word
            one.idle_since = self.now if one.requests else one.idle_since
            if self.now - one.idle_since >= self.suspend and not one.keep:
                one.asleep = True
                self.did["sleeps"] += 1
        one.told = [*one.told[1:], "" if one.asleep else one.load.word]
        one.led = [*one.led[1:], one.gate is True]

    def _plan(self) -> None:
        """What the controller does about it, as long as it has something to do."""
        for _ in range(10):
            known = [(one.gate, one.told[0], one.keep) for one in self.all]
            if known == self.settled:
                return
            pods = [pod(n, gate=True, serving=one.gate) for n, one in enumerate(self.all)]
            instances = [
                gi(n, "-" if one.told[0] else "RAM", workload=self.workload, keep_awake=one.keep, load=one.told[0])
                for n, one in enumerate(self.all)
            ]
            done = [a for a in planned(Case("", self.workload, pods, instances)) if self._do(a)]
            if not done:
                self.settled = known
                return
        raise AssertionError("the plan does not come to an end")

    def _do(self, action: actions.Action) -> bool:
        if isinstance(action, actions.SetServing):
            self.all[int(action.name[-1])].gate = action.serving or action.reason
            self.did["gates"] += 1
            self.did["surplus"] += action.reason == "Surplus"
            return True
        if isinstance(action, actions.ApplyInstance):
            self.all[int(action.name[-1])].keep = action.body["spec"]["policy"].get("keepAwake", False)
            self.did["intents"] += 1
            return True
        return False


TARGETS = [1, 2, 8]
LENGTHS = [0.3, 3.0, 20.0]
HALF_AN_HOUR = 1800.0


def some_of(target: int) -> list[int]:
    """Clients: fewer than, as many as, and more than one, two, three and all four instances can take."""
    return sorted({1, target, 2 * target, 3 * target - 1, 9 * target})


@pytest.mark.parametrize("seconds", LENGTHS, ids=lambda s: f"{s:g}s")
@pytest.mark.parametrize("target", TARGETS)
def test_evenly_led_as_many_are_awake_as_are_needed_and_nothing_moves(target: int, seconds: float) -> None:
    for clients in some_of(target):
        loop = Loop(target, clients, seconds, even=True)
        loop.run(HALF_AN_HOUR / 4)
        assert loop.awake == min(4, clients // target + 1), (clients, loop.did)
        assert loop.run(HALF_AN_HOUR / 2) == {"words": 0}, clients


@pytest.mark.parametrize("seconds", LENGTHS, ids=lambda s: f"{s:g}s")
@pytest.mark.parametrize("target", TARGETS)
def test_unevenly_led_nobody_is_taken_out_and_put_back(target: int, seconds: float) -> None:
    """What the dice give to each varies, and with it the words; who has no call for a minute sleeps, as it may."""
    for clients in some_of(target):
        loop = Loop(target, clients, seconds, even=False)
        loop.run(HALF_AN_HOUR / 4)
        assert abs(loop.awake - min(4, clients // target + 1)) <= 1, (clients, loop.did)
        did = loop.run(HALF_AN_HOUR)
        assert did["surplus"] == 0, (clients, did)
        assert did["wakes"] <= (10 if seconds >= 20 else 0), (clients, did)
        assert did["words"] + 2 * did["intents"] + did["gates"] <= 180 * loop.awake, (clients, did)


@pytest.mark.parametrize("even", [True, False], ids=["evenly", "unevenly"])
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_not_needed_any_more_sleeps(target: int, even: bool) -> None:
    loop = Loop(target, 4 * target, 3.0, even=even)
    loop.run(HALF_AN_HOUR / 4)
    assert loop.awake == 4
    loop.clients = target - target // 2
    loop.run(HALF_AN_HOUR)
    assert loop.awake <= loop.clients // target + 2, loop.did
    loop.clients = 0
    did = loop.run(HALF_AN_HOUR / 4)
    assert loop.awake == 0, did
    assert did["wakes"] == 0
    assert sum(one.gate is True for one in loop.all) == 1, "one is left to be called"
