"""How many are awake (`wake.targetInFlight`): who is woken because the others are busy, who is not needed any more.

Asked are those that work: awake, answering, in the Service. The agent of each says how busy it is, in a word that it
changes rarely (agent/kybernate_agent/traffic/load.py): Full, it has had as many requests in flight as the target, or
more; Low, fewer than a quarter of it; else Some.

    all are Full              one more is needed: who was taken out and is awake still, else the cheapest to wake
    all but one are Full,     that one is kept awake, however idle: asleep it would be needed at once
    and that one is Low
    all are Low, and there    one is taken out, the highest ordinal. It gets no new calls, ends those that it has, and
    are more than minAwake    goes to sleep by its own `idle.suspendAfter`. Until it does, no other follows
    else                      all stays as it is; also where one says nothing, because its agent begins anew

So it does not swing under a load that does not change, however unevenly that is spread. The words are of means: n that
are Full have at least n*3/4 of the target t between them, n that are Low have less than n*3/8. One comes at n*3/4*t
or more; the n+1 that share that are not all Low, for (n+1)*3/8*t is not more. One goes below n*3/8*t; the n-1 that
share that are not all Full, for (n-1)*3/4*t is not less, as long as n is at least 2.

Nothing is remembered here: who is needed has `policy.keepAwake` in its GpuInstance, who is not has the reason Surplus
at its gate. A pod without a gate (it was made while the workload had one replica) cannot be taken out: it stays in the
Service, and sleeps when nobody happens to call it.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate_controller.objects import FULL, LOW
from kybernate_controller.replica import Replica
from kybernate_controller.serving import SURPLUS, cost


@dataclass(frozen=True)
class Need:
    """Ordinals: `awake` are woken, and do not go to sleep; `surplus` are awake, and are to get no new calls."""

    awake: frozenset[int] = frozenset()
    surplus: frozenset[int] = frozenset()


def of(workload: GpuWorkloadObject, members: list[Replica], kept: Container[int]) -> Need:
    """Who is needed and who is not. `kept`: ordinals that stay awake and in the Service anyway (`idle.minAwake`)."""
    spec = workload.spec
    if spec.wake.target_in_flight is None or spec.traffic != "Pack" or spec.state != "Auto":
        return Need()
    able = [member for member in members if member.awake and member.available]
    out = [member for member in able if _is_out(member) and member.ordinal not in kept]
    working = [member for member in able if member not in out]
    if not working:
        return Need()
    awake = {member.ordinal for member in working if _is_kept(member, working)}
    surplus = {member.ordinal for member in out}
    if all(member.load == FULL for member in working):
        sleepers = [member for member in members if member.asleep and member.available]
        if (next_one := next(iter(out), None) or min(sleepers, key=_ease, default=None)) is not None:
            awake.add(next_one.ordinal)
            surplus.discard(next_one.ordinal)
    elif not out and len(working) > max(1, spec.idle.min_awake) and all(member.load == LOW for member in working):
        spare = [m for m in working if m.alive is not None and m.alive.gated and m.ordinal not in kept]
        surplus = {member.ordinal for member in spare[-1:]}
    return Need(frozenset(awake), frozenset(surplus))


def _is_out(member: Replica) -> bool:
    """It was taken out because it was not needed."""
    gate = member.alive.condition(names.SERVING) if member.alive is not None and member.alive.gated else None
    return gate is not None and gate.status == "False" and gate.reason == SURPLUS


def _is_kept(member: Replica, working: list[Replica]) -> bool:
    """Whether it must not go to sleep. One that is not Low does not anyway, so that is left as it is: no write."""
    if member.load != LOW:
        return member.held
    others = [other for other in working if other is not member]
    if any(not other.load for other in others):
        return member.held
    return bool(others) and all(other.load == FULL for other in others)


def _ease(member: Replica) -> tuple[bool, bool, tuple[bool, bool, bool, bool, int]]:
    """The lower, the sooner it is of help: who is being woken already, then the cheapest to wake."""
    assert member.instance is not None
    return (member.instance.status.cannot_wake is not None, not member.held, cost(member))
