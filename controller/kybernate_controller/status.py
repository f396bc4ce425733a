"""What is said of a workload: counts, conditions, and the events that go with a condition's change.

Counts are of instances: `awake` ones run in the pod that we know, `suspended` and `parked` ones keep their state there,
also while their pod waits for its node. Nothing here is a wish: what the plan has just decided shows when it is done.

    Ready             all wanted instances exist and answer, awake or by a wake
    Progressing       something is being made, replaced or ended
    Degraded          something is wrong with an instance: which, and why
    StateLost         an instance's state is lost, and nobody has said yet that it may begin anew
    TemplateInvalid   no pod can be made of the template: what the API server says
    RequestsReleased  whether parked pods give their requests back; absent where that is not wanted

A condition keeps its time as long as its status stays; the same words are not written twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject, WorkloadStatus
from kybernate.api.objects import Condition
from kybernate_controller import trouble
from kybernate_controller.actions import Event, WriteStatus
from kybernate_controller.objects import NVME, RAM, Node
from kybernate_controller.replica import Findings, Replica, in_order
from kybernate_controller.resize import obstacle
from kybernate_controller.rollout import outdated
from kybernate_controller.scale import Scale
from kybernate_controller.template import Template

LONGEST_MESSAGE = 1024
KINDS = frozenset({"Ready", "Progressing", "Degraded", "StateLost", "TemplateInvalid", "RequestsReleased"})
WARNINGS = {"Degraded", "StateLost", "TemplateInvalid"}

Verdict = tuple[Literal["True", "False"], str, str]
"""Whether it holds, a reason in one word, a message."""


@dataclass(frozen=True)
class View:
    """What is known of a workload. `objection`: why no pod can be made of its template; empty where one can."""

    workload: GpuWorkloadObject
    template: Template
    scale: Scale
    found: Mapping[int, Replica]
    nodes: Mapping[str, Node]
    findings: Findings
    objection: str


def of(view: View, now: str) -> WorkloadStatus:
    """The status as it should be now."""
    workload, template, objection = view.workload, view.template, view.objection
    existing = [replica for replica in view.found.values() if replica.exists]
    verdicts: dict[str, Verdict] = {
        "Ready": _ready(view),
        "Progressing": _progressing(view),
        "Degraded": _degraded(view),
        "StateLost": _lost(view),
        "TemplateInvalid": ("True", "Refused", objection) if objection else ("False", "Accepted", ""),
    }
    if workload.spec.idle.release_requests and workload.spec.idle.park_after is not None:
        verdicts["RequestsReleased"] = _released(view)
    return WorkloadStatus(
        observed_generation=workload.metadata.generation,
        replicas=len(existing),
        updated_replicas=sum(r.alive is not None and not outdated(r, template.hash) for r in existing),
        awake=sum(replica.awake for replica in existing),
        suspended=sum(replica.tier == RAM for replica in existing),
        parked=sum(replica.tier == NVME for replica in existing),
        selector=f"{names.WORKLOAD}={workload.metadata.name}",
        conditions=_conditions(workload, verdicts, now),
    )


def write(workload: GpuWorkloadObject, status: WorkloadStatus) -> WriteStatus | None:
    """The write that makes it so; None where it is so already."""
    if _said(status) == _said(workload.status):
        return None
    held = {condition.type: condition.status for condition in workload.status.conditions}
    events = tuple(
        Event(condition.reason or condition.type, condition.message, warning=True)
        for condition in status.conditions
        if condition.type in WARNINGS and condition.status == "True" and held.get(condition.type) != "True"
    )
    return WriteStatus(uid=workload.metadata.uid, status=status, events=events)


def _said(status: WorkloadStatus) -> tuple[object, ...]:
    """What we say: conditions of others are theirs, and the order of ours has no meaning."""
    ours = {condition.type: condition for condition in status.conditions if condition.type in KINDS}
    rest = [getattr(status, name) for name in WorkloadStatus.__struct_fields__ if name != "conditions"]
    return (*rest, ours)


def _ready(view: View) -> Verdict:
    wanted, members = view.workload.spec.replicas, view.scale.members
    ready = sum(member.available for member in members)
    if ready >= wanted:
        return "True", "AllAvailable", f"{ready} of {wanted} instances answer"
    missing = _listed([member.name for member in members if not member.available])
    return "False", "NotAllAvailable", f"{ready} of {wanted} instances answer; missing: {missing}"


def _progressing(view: View) -> Verdict:
    members = view.scale.members
    staying = {member.ordinal for member in members if not member.leaving}
    rest = [r for r in in_order(view.found.values()) if r.ordinal not in staying]
    going = [r.name for r in rest if r.pod is not None or r.instance is not None]
    if going:
        return "True", "ScalingDown", f"ends {_listed(going)}"
    if view.objection:
        return "False", "TemplateInvalid", "nothing new is made until the template is corrected"
    new = [member.name for member in members if member.alive is None]
    if new:
        return "True", "MakingPods", f"makes {_listed(new)}"
    old = [member for member in members if outdated(member, view.template.hash)]
    waiting = [m.name for m in old if m.asleep and view.workload.spec.rollout.sleeping == "OnWake"]
    if len(old) > len(waiting):
        return "True", "RollingOut", f"{len(old)} of {len(members)} instances are of an earlier template"
    starting = [member.name for member in members if not member.available and not member.cut_off]
    if starting:
        return "True", "Starting", f"waits for {_listed(starting)}"
    if waiting:
        return "False", "WaitsForWake", f"takes the changed template when awake: {_listed(waiting)}"
    return "False", "Complete", ""


def _degraded(view: View) -> Verdict:
    shown = {r.ordinal: r for r in view.found.values() if r.leaving} | {m.ordinal: m for m in view.scale.members}
    troubles = [t for r in in_order(shown.values()) if (t := trouble.of(r, view.nodes, view.findings))]
    if not troubles:
        return "False", "AllWell", ""
    return "True", troubles[0].reason, "; ".join(t.message for t in troubles)


def _lost(view: View) -> Verdict:
    lost = [why for member in view.scale.members if (why := trouble.lost(member, view.nodes))]
    if not lost:
        return "False", "NoneLost", ""
    remedy = "to begin anew, delete the GpuInstance, raise its spec.startAnew, or set onStateLost: Start"
    return "True", "StateLost", f"{'; '.join(lost)} ({remedy})"


def _released(view: View) -> Verdict:
    for member in view.scale.members:
        pod = member.alive
        if pod is None:
            continue
        if why := view.findings.unsized.get(pod.metadata.uid):
            return "False", "ResizeRefused", f"{member.name}: {why}"
        if why := obstacle(pod, view.template.container):
            return "False", "NotPossible", why
    return "True", "WhileParked", "parked pods lower their CPU and memory requests"


def _conditions(workload: GpuWorkloadObject, verdicts: Mapping[str, Verdict], now: str) -> list[Condition]:
    held = {condition.type: condition for condition in workload.status.conditions}
    conditions = []
    for kind, (word, reason, message) in verdicts.items():
        old = held.get(kind)
        since = old.last_transition_time if old and old.status == word else ""
        conditions.append(
            Condition(
                type=kind,
                status=word,
                reason=reason,
                message=message if len(message) <= LONGEST_MESSAGE else f"{message[: LONGEST_MESSAGE - 3]}...",
                last_transition_time=since or now,
                observed_generation=workload.metadata.generation,
            )
        )
    return conditions


def _listed(items: list[str]) -> str:
    return ", ".join(items[:10]) + (f" and {len(items) - 10} more" if len(items) > 10 else "")
