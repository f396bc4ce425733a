"""Who stays in the Service (`traffic: Pack`): the readiness gate of each pod that has one.

- As long as one instance is awake and ready, sleepers are out: calls go to who works.
- If none is, one sleeper is in, so that a call can wake it: one that is waking already, else the cheapest to wake
  (memory before disk), else the one that is in already.
- Who does not sleep is in: whether it is ready is the kubelet's word. But for who is not needed (target.py).

A pod that was made while the workload had a single instance has no gate and stays in; a call that comes to it wakes
it, and nothing is lost but a little sleep.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from kybernate.api import names
from kybernate_controller.actions import SetServing
from kybernate_controller.objects import RAM
from kybernate_controller.replica import Replica

SURPLUS = "Surplus"
"""The gate's reason where it is not needed."""


def steps(members: list[Replica], *, pack: bool, surplus: Container[int] = ()) -> Iterator[SetServing]:
    """The gates that are to be changed. `surplus`: ordinals that are awake and not needed, for others work."""
    sleepers = [member for member in members if member.asleep and member.alive]
    working = any(member.awake and member.available for member in members)
    chosen: Replica | None = None
    if sleepers and not working:
        chosen = min(sleepers, key=cost)
    for member in members:
        pod = member.alive
        if pod is None or not pod.gated:
            continue
        serving, reason = True, "Awake"
        if member.asleep and pack:
            serving = member is chosen
            reason = "FirstToWake" if serving else "Asleep"
        elif member.asleep:
            reason = "Spread"
        elif not member.awake:
            reason = "Starting"
        elif member.ordinal in surplus:
            serving, reason = False, SURPLUS
        held = pod.condition(names.SERVING)
        if held is None or (held.status == "True") != serving:
            yield SetServing(name=pod.metadata.name, uid=pod.metadata.uid, serving=serving, reason=reason)


def cost(member: Replica) -> tuple[bool, bool, bool, bool, int]:
    """The lower, the sooner it answers."""
    pod = member.alive
    serving = pod is not None and pod.holds(names.SERVING)
    return (not member.available, member.state != "Resuming", member.tier != RAM, not serving, member.ordinal)
