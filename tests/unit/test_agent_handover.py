"""A container that is taken over or goes, and what comes in between."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_actor import UID, actor_in
from kybernate_agent import handover, verbs
from kybernate_agent.actor import Actor
from kybernate_agent.decide import decide
from kybernate_agent.instance import Leaving, Phase, Pod, Verb
from kybernate_agent.keepers import KeeperGoneError, KeeperState
from kybernate_agent.look import look
from kybernate_agent.stage import Stage
from kybernate_agent.traffic.rules import RulesError

from kybernate.errors import RefusedError

LEAVING = Leaving(signal=15, at=0.0, drain=0.0)
FIRST, NEXT = Pod(uid=UID, container="c1"), Pod(uid=UID, container="c2")


def stage(actor: Actor, verb: Verb) -> Stage:
    return Stage(actor.services.journal, actor.record, verb, "it is time")


def taken_over(actor: Actor, monkeypatch: pytest.MonkeyPatch, told_to_end: bool) -> None:
    """The keeper answers that it awaits its restore; meanwhile containerd may tell the container to end."""

    async def adopt() -> None:
        actor.last_keeper = KeeperState(state="awaiting-restore", container="c2", keeper_pid=1)
        if told_to_end:
            actor.leave(LEAVING)
            actor.give_up("its pod was deleted")

    async def hold(ports: list[int]) -> None:
        assert ports == []

    monkeypatch.setattr(actor, "adopt", adopt)
    traffic: Any = SimpleNamespace(hold=hold)
    actor._traffic = traffic


async def test_one_whose_rules_stay_is_still_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would run on, and its instance wait for a container for ever."""
    actor = actor_in(tmp_path, Phase.PENDING)
    failures = [RulesError(netns="/run/netns/x", program="iptables", reason="the xtables lock is held")]

    async def adopt() -> None:
        actor.last_keeper = KeeperState(state="running", container="c2", keeper_pid=1)

    async def release() -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(actor, "adopt", adopt)
    traffic: Any = SimpleNamespace(release=release, oldest_held_at=lambda: None)
    actor._traffic = traffic
    actor.offer = NEXT
    await verbs.perform(actor, Verb.ADOPT, "its container was started")
    assert actor.record.phase == Phase.PENDING
    assert actor.offer == NEXT
    assert [each.reason for each in actor.record.conditions] == ["AdoptFailed"]
    later = actor.not_before[Verb.ADOPT]
    assert decide(look(actor, later), later).verb == Verb.ADOPT

    await verbs.perform(actor, Verb.ADOPT, "its container was started")
    assert actor.record.phase.value == "Running"
    assert actor.offer is None
    assert actor.record.conditions == []


async def test_an_offer_that_comes_meanwhile_is_taken_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = actor_in(tmp_path, Phase.PARKED)
    taken_over(actor, monkeypatch, told_to_end=False)
    after = Pod(uid=UID, container="c3")

    async def hold(ports: list[int]) -> None:
        actor.offered(after)

    monkeypatch.setattr(actor.traffic, "hold", hold)
    actor.offer = NEXT
    await handover.adopt(actor, stage(actor, Verb.ADOPT))
    assert actor.offer == after


async def test_what_was_of_the_container_before_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = actor_in(tmp_path, Phase.PARKED, leaving=LEAVING, given_up="of old")
    actor.told_to_end = True
    taken_over(actor, monkeypatch, told_to_end=False)
    actor.offer = NEXT
    await handover.adopt(actor, stage(actor, Verb.ADOPT))
    assert (actor.record.leaving, actor.record.given_up, actor.record.pod.container) == (None, "", "c2")
    assert not actor.told_to_end


async def test_a_signal_while_it_is_taken_over_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook has been told that the agent sees to its end: nobody else will."""
    actor = actor_in(tmp_path, Phase.PARKED)
    taken_over(actor, monkeypatch, told_to_end=True)
    actor.offer = NEXT
    await handover.adopt(actor, stage(actor, Verb.ADOPT))
    assert actor.record.leaving == LEAVING
    assert actor.record.given_up


async def test_one_that_is_taken_over_again_is_still_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = actor_in(tmp_path, Phase.PARKED, leaving=LEAVING, given_up="its pod was deleted")
    taken_over(actor, monkeypatch, told_to_end=False)
    actor.offer = FIRST
    await handover.adopt(actor, stage(actor, Verb.ADOPT))
    assert actor.record.leaving == LEAVING
    assert actor.record.given_up


async def test_one_that_cannot_be_parked_hears_the_signal_whatever_its_network_says(tmp_path: Path) -> None:
    actor = actor_in(tmp_path, Phase.RUNNING, leaving=LEAVING)
    heard: list[int] = []

    async def kill(signal: int) -> None:
        heard.append(signal)

    keeper: Any = SimpleNamespace(kill=kill)
    actor._keeper = keeper
    assert not actor.has_traffic  # which it is to let go
    await handover.leave(actor, stage(actor, Verb.LEAVE))
    assert heard == [15]
    assert actor.record.leaving is None
    assert look(actor, 0.0).ending


@pytest.mark.parametrize("kept", [True, False])
async def test_a_layer_that_could_not_be_made_whole_is_kept_afterwards(tmp_path: Path, kept: bool) -> None:
    """Its pod may stay, and the kubelet make its next container."""
    actor = actor_in(tmp_path, Phase.PARKED, epoch=1, leaving=LEAVING)
    actor.record.pod.upper = str(tmp_path)
    staging = actor.services.store.stage(actor.record.id, 1, 0)
    (staging.images / ("layer.tar" if kept else "pages-1.img")).write_bytes(b"state")
    actor.services.store.commit(staging, {})

    async def kill(signal: int) -> None: ...

    async def state() -> None:
        raise KeeperGoneError(container="c1", cause="it hangs")

    keeper: Any = SimpleNamespace(kill=kill, state=state)
    actor._keeper = keeper
    await handover.leave(actor, stage(actor, Verb.LEAVE))
    assert actor.layer_outside is not kept
    assert decide(look(actor, 0.0), 0.0).verb == (None if kept else Verb.KEEP)


async def test_an_order_ends_with_the_container_that_it_was_for(tmp_path: Path) -> None:
    """Else the next one would be put to sleep by it, whenever it comes."""
    actor = actor_in(tmp_path, Phase.RUNNING)
    done = actor.orders.give(Verb.SUSPEND)
    await handover.discard(actor, stage(actor, Verb.DISCARD))
    assert actor.orders.current is None
    assert isinstance(done.exception(), RefusedError)
