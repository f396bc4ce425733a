"""What becomes of an instance whose container is told to end (SIGTERM from the kubelet): a pure function.

A pod that a person deletes gives its state up; whatever takes it away otherwise must not. What nobody can say (no API
server) counts as otherwise: a state that is kept in vain costs disk, one that is given up in vain is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from kybernate_agent.cluster.objects import Fate
from kybernate_agent.instance import Phase

DRAIN_SHARE = 1 / 3
"""Of the grace period, at most: the rest is for the dump."""
TRY_SHARE = 2 / 3
LEAST_SECONDS = 5.0
"""In which it is tried all the same where nothing is left of the grace: a pod that is forced away, or gone."""
UNKNOWN_GRACE_SECONDS = 30.0
"""Kubernetes' own default."""


@dataclass(frozen=True, slots=True)
class Departure:
    """`park` or `wake` first, or neither: then the signal is passed on at once. `given_up`: why no state is kept."""

    park: bool = False
    wake: bool = False
    given_up: str = ""
    drain_seconds: float = 0.0
    seconds: float = 0.0  # in which a dump that came to nothing may be tried again


def depart(phase: Phase, fate: Fate | None, *, annotated: bool, wake_to_end: bool, drain_timeout: float) -> Departure:
    """`fate` is None where nobody can say what becomes of the pod."""
    awake = phase == Phase.RUNNING
    asleep = phase in (Phase.SUSPENDED, Phase.PARKED)
    if not awake and not asleep:
        return Departure()
    if fate is not None and fate.deleted and (annotated or not fate.evicted):
        return Departure(wake=asleep and wake_to_end, given_up="its pod was deleted: the next one begins anew")
    if awake and fate is not None and not fate.deleted and not fate.evicted:
        return Departure()  # the kubelet starts it again by itself: a liveness probe failed, or its sandbox is gone
    grace = fate.grace_seconds if fate else UNKNOWN_GRACE_SECONDS
    drain = min(drain_timeout, grace * DRAIN_SHARE) if awake else 0.0
    return Departure(park=True, drain_seconds=drain, seconds=max(LEAST_SECONDS, grace * TRY_SHARE))
