"""Which ordinals exist.

Ordinals are stable: an instance keeps its number, and its state, for as long as it exists. So scaling down chooses
instances, not numbers, and may leave holes: what has nothing to lose goes first (state lost, not running yet), then
what sleeps (parked before suspended), and what works goes last; among equals the highest ordinal goes first. Scaling
up fills holes, lowest first. An ordinal that is still leaving is waited for: its name, and perhaps its state, are
still there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kybernate_controller.objects import NVME, RAM, STATE_LOST
from kybernate_controller.replica import Replica, in_order


@dataclass(frozen=True)
class Scale:
    """`members` exist or are to exist, by ordinal; `surplus` is to go, first what goes first."""

    members: list[Replica]
    surplus: list[Replica]


def choose(workload: str, found: Mapping[int, Replica], wanted: int) -> Scale:
    """Members and surplus of a workload that is to have `wanted` instances."""
    existing = [replica for replica in found.values() if replica.exists]
    if len(existing) > wanted:
        surplus = sorted(existing, key=_worth)[: len(existing) - wanted]
        going = {replica.ordinal for replica in surplus}
        return Scale(in_order(r for r in existing if r.ordinal not in going), surplus)
    members, ordinal = list(existing), 0
    while len(members) < wanted:
        replica = found.get(ordinal) or Replica(ordinal, f"{workload}-{ordinal}")
        if not replica.exists:
            members.append(replica)
        ordinal += 1
    return Scale(in_order(members), [])


def _worth(replica: Replica) -> tuple[int, int]:
    """The lower, the sooner it goes."""
    if replica.instance is None:
        return (-1, -replica.ordinal)  # never an instance yet, or the pod of one that has gone
    if replica.state == STATE_LOST:
        return (0, -replica.ordinal)
    rank = {NVME: 2, RAM: 3}.get(replica.tier)
    if rank is None:
        rank = 4 if replica.awake and replica.available else 1
    return (rank, -replica.ordinal)
