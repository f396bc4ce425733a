"""One look at an instance: all that its next decision rests on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kybernate_agent import clock, processes
from kybernate_agent.instance import Condition, Phase, Policy, View
from kybernate_agent.traffic.activity import Activity, fold
from kybernate_agent.traffic.load import UNKNOWN, Load, fold_load
from kybernate_agent.traffic.sockdiag import State

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

LOAD_SAMPLE_SECONDS = 0.5
STARTING = {
    "NotListening": "it does not listen on {ports} yet",
    "NotReady": "the kubelet does not find its container ready",
}


def look(actor: Actor, now: float) -> View:
    record, state, policy = actor.record, actor.last_keeper, actor.policy
    activity = sample(actor, now)
    if activity is None or not actor.keeper_watched:
        actor.starting = ""
    _say_starting(actor, now)
    _say_load(actor, activity, now)
    member = record.member
    return View(
        phase=record.phase,
        since=record.since,
        policy=policy,
        last_activity=record.last_activity,
        # The newest: while one of them is younger than maxInFlight, work is going on.
        in_flight_since=max(activity.in_flight.values(), default=None) if activity else None,
        wake_wanted=bool(actor.wake_wanted),
        held_since=_held_since(actor, now),
        order=actor.orders.current,
        not_before=dict(actor.not_before),
        keeper_alive=actor.keeper_watched,
        processes_alive=state is not None and processes.is_alive(state.init_pid, state.init_start),
        killed=state is not None and state.state == "ended" and state.killed,
        layer_outside=actor.layer_outside,
        half_restored=state is not None and state.state == "restoring" and not actor.rescued.is_set(),
        unproven=record.unproven != 0 and not (state and state.lived >= actor.services.config.prove_seconds),
        prove_at=actor.prove_at,
        deleting=actor.deleting,
        sample_seconds=_sample_seconds(policy),
        kubelet=actor.services.starter.kubelet,
        offered=actor.offer is not None,
        leaving=record.leaving,
        given_up=bool(record.given_up),
        ending=actor.told_to_end or bool(record.given_up),
        fenced=bool(member and record.pod.uid and member.pod_uid not in ("", record.pod.uid)),
        anew=bool(record.given_up) or (actor.services.starter.kubelet and policy.anew_when_lost),
        down_since=actor.down_since,
        copy_wanted=bool(actor.copies),
        deaf_until=actor.deaf_until,
        starting=bool(actor.starting),
    )


def _sample_seconds(policy: Policy) -> float:
    seconds = min(5.0, max(0.1, (policy.suspend_after or 5.0) / 10))
    return seconds if policy.target_in_flight is None else min(seconds, LOAD_SAMPLE_SECONDS)


def _held_since(actor: Actor, now: float) -> float | None:
    since = actor.traffic.oldest_held_at() if actor.has_traffic else None
    return None if since is None else now - (time.monotonic() - since)


def sample(actor: Actor, now: float) -> Activity | None:
    """What moved since the last look; None where nobody asks for it."""
    record, policy = actor.record, actor.policy
    if record.phase != Phase.RUNNING or not actor.has_traffic or actor.deleting:
        return None
    if policy.suspend_after is None and actor.orders.current is None and not policy.down and record.leaving is None:
        return None
    found = actor.traffic.sample()
    listening = {one.local_port for one in found.sockets if one.state == State.LISTEN}
    ports = actor.wanted.ports or tuple(listening)
    activity = actor.activity = fold(actor.activity, found, now, ports)
    # One that does not listen yet is starting, however silent: it loads its model. One that the kubelet finds not ready
    # is starting too, or has taken itself out of service: asleep it would be answered for as if it were ready.
    listens = listening.intersection(ports)
    actor.starting = "NotListening" if not listens else "" if actor.container_ready else "NotReady"
    record.last_activity = max(record.last_activity, now if actor.starting else activity.last_activity)
    return activity


def _say_starting(actor: Actor, now: float) -> None:
    """A condition while it is awake and its idle time has not begun: what it waits for."""
    record, before = actor.record, actor.record.conditions
    if actor.starting:
        ports = ", ".join(map(str, actor.wanted.ports)) or "any port"
        what = STARTING[actor.starting].format(ports=ports) + "; until then it does not go to sleep by itself"
        record.set_condition(Condition(type="Starting", status="True", reason=actor.starting, message=what, at=now))
    else:
        record.clear_condition("Starting")
    if record.conditions != before:
        actor.services.changed(record.id)


def _say_load(actor: Actor, activity: Activity | None, now: float) -> None:
    """How busy it is, while it is awake and somebody wants to know."""
    before, policy = actor.load or UNKNOWN, actor.policy
    if policy.target_in_flight is None:
        actor.load = None
    elif activity is None:
        actor.load = Load()
    else:
        requests = activity.requests(now, policy.max_in_flight)
        actor.load = fold_load(before, requests, policy.target_in_flight, now)
        if actor.load.word != before.word:
            actor.services.changed(actor.record.id)


def moved_since_decision(actor: Actor) -> bool:
    """Whether data moved, a connection came or a request is in flight that the last decision did not know of."""
    before, now = actor.record.last_activity, clock.now()
    found = sample(actor, now)
    if found is None:
        return False
    return actor.record.last_activity > before or any(
        now < since + actor.policy.max_in_flight for since in found.in_flight.values()
    )
