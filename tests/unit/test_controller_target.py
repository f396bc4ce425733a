"""`wake.targetInFlight`: who is woken because the others are busy, and who leaves the Service again; as a table.

Each row: the instances by ordinal, then what is to be done next. An instance in a word or two:

    Full, Some, Low   awake, in the Service, and so busy          RAM, NVME   asleep, out of the Service
    out               awake, taken out of it                      kept        its agent is told to keep it awake
    bare              its pod has no gate                         stuck       it cannot be woken
"""

# A table is read by its rows.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

import pytest
from controller_objects import Case, gi, gw, planned, pod, short
from kybernate_controller import actions
from kybernate_controller.instances import policy_of
from kybernate_controller.template import read

from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.api.objects import builtins


def workload(replicas: int, min_awake: int = 0, **more: Any) -> GpuWorkloadObject:
    idle = {"suspendAfter": "1m", "releaseRequests": False, "minAwake": min_awake}
    spec: dict[str, Any] = {"wake": {"targetInFlight": 2}, "idle": idle} | more
    return gw(replicas=replicas, **spec)


def steps(wanted: GpuWorkloadObject, *members: str) -> list[str]:
    """What is next, in a short form."""
    pods, instances = [], []
    for ordinal, text in enumerate(members):
        said = set(text.split())
        tier = next((t for t in ("RAM", "NVME") if t in said), "-")
        load = next((word for word in ("Full", "Some", "Low") if word in said), "")
        serving = "Surplus" if "out" in said else "Asleep" if tier != "-" else True
        ready = "False" if "unready" in said else "True"
        gate = "bare" not in said
        pods.append(pod(ordinal, gate=gate, serving=serving if gate else None, conditions={"ContainersReady": ready}))
        stuck = "CriuFailed" if "stuck" in said else ""
        made = gi(
            ordinal,
            tier,
            workload=wanted,
            keep_awake="kept" in said,
            load=load,
            cannot_wake=stuck,
            order=wanted.spec.state,
        )
        instances.append(made)
    found = planned(Case("", wanted, pods, instances))
    return [told(action) for action in found if not isinstance(action, actions.WriteStatus)]


def told(action: actions.Action) -> str:
    if isinstance(action, actions.ApplyInstance):
        return f"{'keep' if action.body['spec']['policy'].get('keepAwake') else 'release'} {action.name}"
    return short(action)


FREE = workload(3, wake={})
TABLE: list[tuple[str, GpuWorkloadObject, tuple[str, ...], list[str]]] = [
    # One more is needed.
    ("one is busy enough: another is woken", workload(2), ("Full", "NVME"), ["keep chat-1"]),
    ("in whatever order", workload(2), ("NVME", "Full"), ["keep chat-0"]),
    ("the cheapest", workload(3), ("Full", "NVME", "RAM"), ["keep chat-2"]),
    ("one at a time", workload(3), ("Full", "RAM kept", "RAM"), []),
    ("who is being woken is of help sooner than who is cheaper", workload(3), ("Full", "NVME kept", "RAM"), []),
    ("awake, it takes calls", workload(2), ("Full", "out kept"), ["serving chat-1 True"]),
    ("it is known to be there", workload(3), ("Full", "Some kept", "RAM"), []),
    ("not if one has room", workload(3), ("Full", "Some", "RAM"), []),
    ("all have none", workload(3), ("Full", "Full", "RAM"), ["keep chat-2"]),
    ("all are awake", workload(2), ("Full", "Full"), []),
    ("who cannot be woken is no help", workload(3), ("Full", "RAM kept stuck", "NVME"), ["release chat-1", "keep chat-2"]),
    ("unless it is the only one", workload(2), ("Full", "RAM kept stuck"), []),
    ("one that was taken out comes back", workload(3), ("Full", "RAM", "Some out"), ["keep chat-2", "serving chat-2 True"]),
    ("a pod without a gate too", workload(2), ("Full", "RAM bare"), ["keep chat-1"]),
    ("one whose agent says nothing", workload(2), ("", "RAM"), []),
    # It stays while it is needed.
    ("however idle it is", workload(2), ("Full", "Low kept"), []),
    ("also one that a person has woken", workload(2), ("Full", "Low"), ["keep chat-1"]),
    ("no longer", workload(2), ("Some", "Low kept"), ["release chat-1"]),
    ("used, it does not sleep: that costs no write", workload(2), ("Some", "Some kept"), []),
    ("nor does this", workload(2), ("Full", "Some"), []),
    ("busy itself", workload(2), ("Full", "Full kept"), []),
    ("nobody knows whether it is needed", workload(2), ("", "Low kept"), []),
    ("the others sleep", workload(2), ("RAM", "Low kept"), ["release chat-1"]),
    ("it is needed no more before it was awake", workload(2), ("Some", "RAM kept"), ["release chat-1"]),
    # One is not needed any more.
    ("all are calm: the highest goes", workload(3), ("Low", "Low", "Low"), ["serving chat-2 False"]),
    ("one at a time, till it sleeps", workload(3), ("Low", "Low", "Low out"), []),
    ("then the next", workload(3), ("Low", "Low", "RAM"), ["serving chat-1 False"]),
    ("who was needed goes at once", workload(2), ("Low", "Low kept"), ["release chat-1", "serving chat-1 False"]),
    ("never the last", workload(2), ("Low", "RAM"), []),
    ("not if one is not so calm", workload(2), ("Some", "Low"), []),
    ("nor if nobody knows of one", workload(2), ("Low", ""), []),
    ("as many as minAwake stay", workload(3, 2), ("Low kept", "Low kept", "Low"), ["serving chat-2 False"]),
    ("also while one of them does not answer", workload(3, 2), ("Low kept unready", "Low kept", "Low"), []),
    ("all of them", workload(2, 2), ("Low kept", "Low kept"), []),
    ("whichever those are", workload(3, 2), ("Low", "Low kept", "Low kept"), ["serving chat-0 False"]),
    ("one without a gate cannot go", workload(2), ("Low", "Low bare"), ["serving chat-0 False"]),
    ("nor can both", workload(2), ("Low bare", "Low bare"), []),
    ("out, and busy still", workload(2), ("Low", "Full out"), []),
    ("who was out is the only one that works", workload(2), ("RAM", "Low out"), ["serving chat-1 True"]),
    ("the other does not answer", workload(2), ("Low unready", "Low out"), ["serving chat-1 True"]),
    # Nothing of the kind.
    ("a person's order stands above", workload(2, state="Running"), ("Full", "RAM"), []),
    ("the target is taken away", FREE, ("Low", "RAM kept", "Low out"), ["release chat-1", "serving chat-2 True"]),
    ("with one replica nobody asks", workload(1), ("Full",), []),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "members", "then"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_next_step(wanted: GpuWorkloadObject, members: tuple[str, ...], then: list[str]) -> None:
    assert steps(wanted, *members) == then


def test_names_of_rows_are_unique() -> None:
    assert len({row[0] for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_agent_is_asked_only_where_another_could_be_woken(replicas: int) -> None:
    wanted = workload(replicas)
    policy = policy_of(wanted, read(wanted), keep_awake=False)
    assert policy.target_in_flight == (2 if replicas > 1 else None)
    assert ("targetInFlight" in builtins(policy)) == (replicas > 1)
