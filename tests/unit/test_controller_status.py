"""What the controller says of a workload: counts, conditions, and the events that go with them."""

# A table is read by its rows.
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from controller_objects import NOW, STRANGER, Case, gi, gw, node, planned, pod, short
from kybernate_controller import actions, template
from kybernate_controller.replica import Findings

from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.api.objects import Condition, decode, encode

TWO = gw(replicas=2)
NEW = gw(image="two")
NEW2 = gw(image="two", replicas=2)
PARKS = gw(idle={"suspendAfter": "1m", "parkAfter": "1m"})


@dataclass
class Said:
    """What the conditions say: (type, status, reason, a part of the message)."""

    case: Case
    conditions: list[tuple[str, str, str, str]]
    counts: dict[str, int] = field(default_factory=dict)


def status_of(case: Case) -> Any:
    (write,) = [action for action in planned(case) if isinstance(action, actions.WriteStatus)]
    return write


BROKEN: dict[str, Any] = {
    "containerStatuses": [{"name": "server", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no x"}}}]
}
UNREADY = {"ContainersReady": "False"}
SAID = [
    Said(Case("ready", gw(), [pod(0)], [gi(0)]), [("Ready", "True", "AllAvailable", "1 of 1"), ("Progressing", "False", "Complete", ""), ("Degraded", "False", "AllWell", "")], {"replicas": 1, "updated_replicas": 1, "awake": 1}),
    Said(Case("asleep", TWO, [pod(0), pod(1)], [gi(0, "RAM"), gi(1, "NVME")]), [("Ready", "True", "AllAvailable", "2 of 2")], {"replicas": 2, "awake": 0, "suspended": 1, "parked": 1}),
    Said(Case("none yet", TWO), [("Ready", "False", "NotAllAvailable", "missing: chat-0, chat-1"), ("Progressing", "True", "MakingPods", "chat-0, chat-1")], {"replicas": 0}),
    Said(Case("a report about an earlier pod", gw(), [pod(0)], [gi(0, told_of="old")]), [], {"awake": 0}),
    Said(Case("kept while its pod waits", gw(), [pod(0, uid="q", node="", bound="n1", phase="Pending")], [gi(0, "NVME")], nodes=[node(cordoned=True)]), [("Degraded", "True", "WaitsForNode", "chat-0: it waits for its state: node n1 is cordoned"), ("Ready", "False", "NotAllAvailable", "chat-0")], {"parked": 1, "awake": 0}),
    Said(Case("one bad instance", TWO, [pod(0), pod(1, conditions=UNREADY, **BROKEN)], [gi(0), gi(1, "")]), [("Degraded", "True", "ImagePullBackOff", "chat-1: container server: no x"), ("Ready", "False", "NotAllAvailable", "missing: chat-1")], {"awake": 1}),
    Said(Case("lost", gw(), [], [gi(0, "NVME")], nodes=[]), [("StateLost", "True", "StateLost", "chat-0: its state lay on node n1, which no longer exists")]),
    Said(Case("lost by the agent", gw(), [pod(0)], [gi(0, "", state="StateLost")]), [("StateLost", "True", "StateLost", "chat-0: the agent of node n1"), ("Ready", "False", "NotAllAvailable", "chat-0")]),
    Said(Case("cannot be woken", gw(), [pod(0)], [gi(0, "NVME", cannot_wake="file-missing")]), [("Degraded", "True", "RestoreFailed", "chat-0: it cannot be woken (file-missing)"), ("Ready", "True", "AllAvailable", "1 of 1")]),
    Said(Case("unreachable", gw(), [pod(0)], [gi(0)], nodes=[node(ready=False)]), [("Degraded", "True", "NodeUnreachable", "node n1 does not answer"), ("Ready", "False", "NotAllAvailable", "missing: chat-0"), ("Progressing", "False", "Complete", "")]),
    Said(Case("taken", gw(), [pod(0, owner=STRANGER)]), [("Degraded", "True", "NameTaken", "chat-0: the name is taken by a pod of the Job other")]),
    Said(Case("refused", NEW, [pod(0)], [gi(0)], findings=Findings(templates={template.read(NEW).hash: "no such"})), [("TemplateInvalid", "True", "Refused", "no such"), ("Ready", "True", "AllAvailable", ""), ("Progressing", "False", "TemplateInvalid", "")], {"updated_replicas": 0}),
    Said(Case("no container", gw(containers=["other"]), [], []), [("TemplateInvalid", "True", "Refused", "no container of the template is called other")]),
    Said(Case("quota", gw(), findings=Findings({template.read(gw()).hash: ""}, refused={0: "exceeded quota"})), [("Degraded", "True", "PodRefused", "chat-0: exceeded quota")]),
    Said(Case("rolling out", NEW2, [pod(0), pod(1, made_of=NEW)], [gi(0), gi(1)]), [("Progressing", "True", "RollingOut", "1 of 2")], {"updated_replicas": 1}),
    Said(Case("rolled out when awake", NEW, [pod(0)], [gi(0, "RAM")]), [("Progressing", "False", "WaitsForWake", "chat-0")], {"updated_replicas": 0}),
    Said(Case("ending", gw(), [pod(0), pod(1, ending=True)], [gi(0), gi(1, leaving=True)]), [("Progressing", "True", "ScalingDown", "ends chat-1"), ("Ready", "True", "AllAvailable", "")], {"replicas": 1}),
    Said(Case("ending on a dead node", gw(), [pod(0, node="n2")], [gi(0, node="n2"), gi(1, leaving=True)], nodes=[node(ready=False), node("n2")]), [("Degraded", "True", "NodeUnreachable", "chat-1: it is to go")]),
    Said(Case("Guaranteed", PARKS, [pod(0, qos="Guaranteed")], [gi(0, workload=PARKS)]), [("RequestsReleased", "False", "NotPossible", "QoS class Guaranteed")]),
    Said(Case("resize refused", PARKS, [pod(0)], [gi(0, workload=PARKS)], findings=Findings({template.read(PARKS).hash: ""}, unsized={"p0": "cannot"})), [("RequestsReleased", "False", "ResizeRefused", "chat-0: cannot")]),
    Said(Case("restart", PARKS, [pod(0)], [gi(0, workload=PARKS)]), [("RequestsReleased", "True", "WhileParked", "")]),
]  # fmt: skip


@pytest.mark.parametrize("said", SAID, ids=lambda said: said.case.name)
def test_status_says_what_is(said: Said) -> None:
    status = status_of(said.case).status
    conditions = {condition.type: condition for condition in status.conditions}
    for kind, holds, reason, part in said.conditions:
        assert (conditions[kind].status, conditions[kind].reason) == (holds, reason), conditions[kind]
        assert part in conditions[kind].message
    assert {name: getattr(status, name) for name in said.counts} == said.counts
    assert status.selector == "kybernate.io/workload=chat"
    assert status.observed_generation == 3


def settled(case: Case) -> Case:
    """The same, with the status written."""
    workload = decode(encode(case.workload), GpuWorkloadObject)
    workload.status = status_of(case).status
    return replace(case, workload=workload)


def test_the_same_status_is_not_written_twice() -> None:
    case = settled(Case("all is well", gw(), [pod(0)], [gi(0)]))
    assert planned(case) == []


def test_conditions_of_others_are_no_reason_to_write() -> None:
    case = settled(Case("all is well", gw(), [pod(0)], [gi(0)]))
    case.workload.status.conditions.insert(0, Condition(type="Audited", status="True"))
    case.workload.status.conditions.reverse()
    assert planned(case) == []
    case.workload.status.conditions.append(Condition(type="RequestsReleased", status="True"))
    assert [short(action) for action in planned(case)] == ["WriteStatus"]


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    case = settled(Case("one is missing", TWO, [pod(0)], [gi(0)]))
    for condition in case.workload.status.conditions:
        condition.last_transition_time = "2020-01-01T00:00:00Z"
    status = status_of(replace(case, pods=[], instances=[])).status
    times = {condition.type: condition.last_transition_time for condition in status.conditions}
    assert times["Ready"] == "2020-01-01T00:00:00Z"
    status = status_of(replace(case, pods=[pod(0), pod(1)], instances=[gi(0), gi(1)])).status
    times = {condition.type: condition.last_transition_time for condition in status.conditions}
    assert times["Ready"] == NOW
    assert times["StateLost"] == "2020-01-01T00:00:00Z"


def test_a_condition_that_comes_true_is_told_once() -> None:
    lost = Case("lost", gw(), [], [gi(0, "NVME")], nodes=[])
    assert [(e.reason, e.warning) for e in status_of(lost).events] == [("StateLost", True)]
    again = replace(settled(lost), findings=Findings({template.read(gw()).hash: ""}, refused={0: "x"}))
    assert [event.reason for event in status_of(again).events] == ["PodRefused"]


def test_an_accepted_template_is_not_tried_again_by_the_next_controller() -> None:
    case = settled(Case("scaled to zero", gw(replicas=0)))
    assert planned(replace(case, findings=Findings())) == []
    case.workload.metadata.generation += 1
    assert [short(action) for action in planned(replace(case, findings=Findings()))] == ["CheckTemplate"]
