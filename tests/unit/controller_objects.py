"""Objects of a cluster for the controller's tables, each with what is usual unless something else is said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kybernate_controller import actions, placement, template
from kybernate_controller.actions import Action
from kybernate_controller.instances import policy_of
from kybernate_controller.objects import GpuNode, Instance, Node, Pod
from kybernate_controller.plan import plan
from kybernate_controller.replica import Findings, Snapshot

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.api.objects import builtins, decode, encode

NOW = "2026-01-01T00:00:00Z"
OWNER = {
    "apiVersion": names.API_VERSION,
    "kind": "GpuWorkload",
    "name": "chat",
    "uid": "w",
    "controller": True,
    "blockOwnerDeletion": True,
}
STRANGER = OWNER | {"kind": "Job", "name": "other", "uid": "x"}
CONTAINER = {
    "name": "server",
    "image": "one",
    "ports": [{"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}],
    "resources": {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
}
ASLEEP = {"-": "Running", "RAM": "Suspended", "NVME": "Parked", "": "Waiting"}


def gw(*, image: str = "one", **spec: Any) -> GpuWorkloadObject:
    """A workload of the third generation that leaves requests alone, unless something else is said."""
    body: dict[str, Any] = {"template": {"spec": {"containers": [CONTAINER | {"image": image}]}}}
    body |= {"idle": {"releaseRequests": False}} | spec
    metadata = {"name": "chat", "namespace": "default", "uid": "w", "generation": 3}
    return decode(encode({"metadata": metadata, "spec": body}), GpuWorkloadObject)


def pod(
    ordinal: int,
    *,
    node: str = "n1",
    bound: str = "",
    avoids: str = "",
    uid: str = "",
    phase: str = "Running",
    made_of: GpuWorkloadObject | None = None,
    owner: dict[str, Any] | None = OWNER,
    ending: bool = False,
    serving: bool | str | None = None,
    gate: bool = False,
    qos: str = "Burstable",
    requests: dict[str, str] | None = None,
    conditions: dict[str, str] | None = None,
    **rest: Any,
) -> Pod:
    """A pod that runs and is ready, unless something else is said. `serving`: why it is not, where that matters."""
    made = template.read(made_of or gw())
    found = {"ContainersReady": "True", "PodScheduled": "True"} if phase == "Running" else {}
    found |= conditions or {}
    if serving is not None:
        found[names.SERVING] = str(serving is True)
    annotations = {names.REQUESTS: '{"cpu":"2","memory":"1Gi"}'} | ({names.STATE_NODE: bound} if bound else {})
    annotations |= {names.AVOIDS: avoids} if avoids else {}
    body = {
        "metadata": {
            "name": f"chat-{ordinal}",
            "namespace": "default",
            "uid": uid or f"p{ordinal}",
            "labels": {names.WORKLOAD: "chat", names.TEMPLATE_HASH: made.hash},
            "annotations": annotations,
            "ownerReferences": [owner] if owner else [],
            "deletionTimestamp": NOW if ending else None,
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "server", "resources": {"requests": requests or {"cpu": "2", "memory": "1Gi"}}}],
            "readinessGates": [{"conditionType": names.SERVING}] if gate else [],
        },
        "status": {
            "phase": phase,
            "qosClass": qos,
            "conditions": [
                {"type": kind, "status": status, "reason": str(serving) if kind == names.SERVING else ""}
                for kind, status in found.items()
            ],
        }
        | rest,
    }
    return decode(encode(body), Pod)


def gi(
    ordinal: int,
    tier: str = "-",
    *,
    node: str = "n1",
    pod_uid: str = "",
    told_of: str | None = None,
    told_by: str | None = None,
    state: str = "",
    leaving: bool = False,
    observed: int = 1,
    workload: GpuWorkloadObject | None = None,
    keep_awake: bool = False,
    start_anew: int = 0,
    honoured: int = 0,
    owner: dict[str, Any] | None = OWNER,
    order: str = "Auto",
    cannot_wake: str = "",
    load: str = "",
) -> Instance:
    """A GpuInstance as the controller wrote it, and what the agent of its node says."""
    workload = workload or gw()
    uid = pod_uid or f"p{ordinal}"
    body = {
        "metadata": {
            "name": f"chat-{ordinal}",
            "namespace": "default",
            "uid": f"i{ordinal}",
            "resourceVersion": "7",
            "generation": 1,
            "labels": {names.WORKLOAD: "chat"},
            "annotations": {names.STARTED_ANEW: str(honoured)} if honoured else {},
            "finalizers": [names.STATE_FINALIZER],
            "ownerReferences": [owner] if owner else [],
            "deletionTimestamp": NOW if leaving else None,
        },
        "spec": {
            "workload": "chat",
            "ordinal": ordinal,
            "nodeName": node,
            "pod": f"chat-{ordinal}",
            "podUID": uid,
            "epoch": 1,
            "state": order,
            "startAnew": start_anew,
            "policy": builtins(policy_of(workload, template.read(workload), keep_awake)),
        },
        "status": {
            "tier": tier,
            "state": state or ASLEEP[tier],
            "nodeName": node if told_by is None else told_by,
            "podUID": uid if told_of is None else told_of,
            "observedGeneration": observed,
            "load": load,
            "conditions": [{"type": "RestoreFailed", "status": "True", "reason": cannot_wake}] if cannot_wake else [],
        },
    }
    return decode(encode(body), Instance)


def node(name: str = "n1", *, ready: bool = True, cordoned: bool = False, taint: str = "") -> Node:
    body = {
        "metadata": {"name": name},
        "spec": {"unschedulable": cordoned, "taints": [{"key": taint}] if taint else []},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}]},
    }
    return decode(encode(body), Node)


def gn(name: str = "n1", *, ready: str = "True", free: str = "50Gi") -> GpuNode:
    """What the agent of a node says; `ready` may be a reason why it is not."""
    well = ready == "True"
    said = {"type": "Ready", "status": str(well), "reason": "AgentReady" if well else ready}
    body = {"metadata": {"name": name}, "status": {"conditions": [said], "tiers": {"NVME": {"free": free}}}}
    return decode(encode(body), GpuNode)


NODES = [node("n1"), node("n2")]


@dataclass
class Case:
    """`then`: the actions but the status, in a short form."""

    name: str
    workload: GpuWorkloadObject
    pods: list[Pod] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    then: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=lambda: NODES)
    findings: Findings | None = None
    ended: frozenset[str] = frozenset()
    gpu_nodes: list[GpuNode] = field(default_factory=list)


def planned(case: Case) -> list[Action]:
    findings = case.findings or Findings(templates={template.read(case.workload).hash: ""})
    nodes = {n.metadata.name: n for n in case.nodes}
    snapshot = Snapshot(
        "default", "chat", case.workload, case.pods, case.instances, nodes, findings=findings, ended=case.ended,
        refusing=[each for each in case.gpu_nodes if placement.refusal(each)],
    )  # fmt: skip
    return plan(snapshot, NOW)


def short(action: Action) -> str:
    match action:
        case actions.CreatePod():
            notes = action.pod["metadata"]["annotations"]
            where = f" for {notes[names.STATE_NODE]}" if names.STATE_NODE in notes else ""
            return f"create {action.name}{where}" + (f" not on {notes[names.AVOIDS]}" if names.AVOIDS in notes else "")
        case actions.DeletePod():
            return f"delete {action.name}" + (" keeping its state" if action.keeps_state else "")
        case actions.ApplyInstance():
            spec = action.body["spec"]
            verb = {actions.StartAnew: "begin anew", actions.LeaveNode: "leave node"}.get(type(action), "apply")
            where = spec.get("nodeName", "nowhere")
            return f"{verb} {action.name} {spec.get('podUID', 'none')} on {where} epoch {spec['epoch']}"
        case actions.SetServing():
            return f"serving {action.name} {action.serving}"
        case actions.ResizePod():
            return f"resize {action.name} {action.requests}"
        case actions.ReleaseInstance():
            return f"release {action.name}"
        case actions.DeleteInstance():
            return f"end {action.name}"
        case actions.AdoptPod():
            return f"adopt {action.name}"
    return type(action).__name__
