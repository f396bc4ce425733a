"""The controller's plan as tables: what is known, and what is to be done next."""

# A table is read by its rows.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

import pytest
from controller_objects import NOW, STRANGER, Case, gi, gn, gw, node, planned, pod, short
from kybernate_controller import actions, template
from kybernate_controller.replica import Findings

from kybernate.api import names

TWO = gw(replicas=2)
NEW = gw(image="two")
NEW2 = gw(image="two", replicas=2)
NOW2 = gw(image="two", replicas=2, rollout={"sleeping": "Now"})
START = gw(onStateLost="Start")
PARKS = gw(idle={"suspendAfter": "1m", "parkAfter": "1m"})
UNPLACED: dict[str, Any] = {"phase": "Pending", "conditions": {"PodScheduled": "False"}}
LOW = {"cpu": "10m", "memory": "16Mi"}

CASES = [
    # Making what is missing.
    Case("the first pod", gw(), then=["create chat-0"]),
    Case("its instance", gw(), [pod(0, node="", phase="Pending")], then=["apply chat-0 p0 on nowhere epoch 1"]),
    Case("where it is", gw(), [pod(0)], [gi(0, "", node="")], ["apply chat-0 p0 on n1 epoch 1"]),
    Case("all is well", gw(), [pod(0)], [gi(0)]),
    Case("an ordered state", gw(state="Parked"), [pod(0)], [gi(0)], ["apply chat-0 p0 on n1 epoch 1"]),
    Case("an untried template", gw(), then=["CheckTemplate"], findings=Findings()),
    Case(
        "a refused template",
        NEW,
        [pod(0)],
        [gi(0)],
        findings=Findings(templates={template.read(NEW).hash: "no such image"}),
    ),
    Case("a pod that may not be made now", gw(), findings=Findings({template.read(gw()).hash: ""}, refused={0: "quota"})),
    Case("nor the others, for now", TWO, findings=Findings({template.read(TWO).hash: ""}, refused={0: "quota"})),
    # Adoption, strangers.
    Case("an orphan", gw(), [pod(0, owner=None)], [gi(0)], ["adopt chat-0"]),
    Case("a stranger's pod", gw(), [pod(0, owner=STRANGER)]),
    Case("a stranger's pod without our label", gw(), findings=Findings({template.read(gw()).hash: ""}, taken={0: "a pod"})),
    Case("an earlier workload's instance", gw(), [], [gi(0, owner=STRANGER)]),
    Case("that goes, and no agent ends it", gw(), [], [gi(0, node="gone", owner=STRANGER, leaving=True)], ["release chat-0"]),
    Case("that goes, and was never anywhere", gw(), [], [gi(0, "", node="", owner=STRANGER, leaving=True)], ["release chat-0"]),
    Case("that goes, and its agent ends it", gw(), [], [gi(0, owner=STRANGER, leaving=True)]),
    Case("an instance that lost its owner", gw(), [pod(0)], [gi(0, owner=None)], ["apply chat-0 p0 on n1 epoch 1"]),
    # A pod that goes.
    Case("a pod that is going", gw(), [pod(0, ending=True)], [gi(0)]),
    Case("a pod that we ended, in a stale cache", gw(), [pod(0, phase="Failed")], [gi(0)], ended=frozenset({"p0"})),
    Case("a pod that failed", gw(), [pod(0, phase="Failed")], [gi(0, "NVME")], ["delete chat-0 keeping its state"]),
    Case("evicted, its state kept", gw(), [], [gi(0, "NVME")], ["create chat-0 for n1"]),
    Case("evicted, and the agent has not spoken yet", gw(), [], [gi(0, "-")], ["create chat-0 for n1"]),
    Case("gone, and the agent never spoke of it", gw(), [], [gi(0, "", told_of="old")], ["create chat-0 for n1"]),
    Case("deleted, and the agent has not heard of its successor", gw(), [], [gi(0, "")], ["create chat-0 for n1"]),
    Case("of a node that does not answer", gw(), [], [gi(0, "RAM")], ["create chat-0 for n1"], [node(ready=False)]),
    Case("its successor is the instance at once", gw(), [pod(0, uid="q", node="", bound="n1", phase="Pending")], [gi(0, "NVME")], ["apply chat-0 q on n1 epoch 2"]),
    Case("of which the agent has not heard yet", gw(), [pod(0, node="", bound="n1", phase="Pending")], [gi(0, "", observed=0)]),
    Case("and says that nothing is kept", gw(), [pod(0, node="", bound="n1", phase="Pending")], [gi(0, "")], ["leave node chat-0 p0 on nowhere epoch 1"]),
    Case("first it leaves, then the pod is made again", gw(), [pod(0, node="", bound="n1", phase="Pending", conditions={"PodScheduled": "False"})], [gi(0, "")], ["leave node chat-0 p0 on nowhere epoch 1"]),
    Case("or that something is", gw(), [pod(0, node="", bound="n1", phase="Pending")], [gi(0, "RAM")]),
    Case("nowhere, and the scheduler may still bind it", gw(), [pod(0, node="", bound="n1", phase="Pending")], [gi(0, "", node="", told_by="n1")]),
    Case(
        "nowhere, and bound where it cannot go",
        gw(),
        [pod(0, node="", bound="n1", phase="Pending", conditions={"PodScheduled": "False"})],
        [gi(0, "", node="", told_by="n1")],
        ["delete chat-0 keeping its state"],
    ),
    Case(
        "not bound, though its state lies somewhere",
        gw(),
        [pod(0, uid="q", node="", phase="Pending")],
        [gi(0, "NVME")],
        ["delete chat-0 keeping its state"],
    ),
    Case("on another node than its state", gw(), [pod(0, uid="q", node="n2")], [gi(0, "RAM")], ["delete chat-0 keeping its state"]),
    # A node that goes.
    Case("its node is gone", gw(), [], [gi(0, "NVME")], nodes=[]),
    Case("its node is out of service", gw(), [], [gi(0, "NVME")], nodes=[node(taint="node.kubernetes.io/out-of-service")]),
    Case("its node is gone, Start", START, [], [gi(0, "NVME", workload=START)], ["begin anew chat-0 none on nowhere epoch 1"], []),
    Case("its node is gone, a person says so", gw(), [], [gi(0, "NVME", start_anew=1)], ["begin anew chat-0 none on nowhere epoch 1"], []),
    Case("its node is gone, and nothing was there", gw(), [], [gi(0, "")], ["create chat-0"], []),
    Case("begun anew", gw(), [], [gi(0, "NVME", node="", told_by="n1", start_anew=1, honoured=1)], ["create chat-0"], []),
    Case(
        "its next pod was bound to the node that is gone, Start",
        START,
        [pod(0, uid="q", node="", bound="n1", phase="Pending")],
        [gi(0, "NVME", workload=START)],
        ["delete chat-0 keeping its state"],
        [],
    ),
    Case("the agent lost it", gw(), [pod(0)], [gi(0, "", state="StateLost")]),
    Case(
        "the agent lost it, Start",
        START,
        [pod(0)],
        [gi(0, "", state="StateLost", workload=START)],
        ["begin anew chat-0 p0 on n1 epoch 1"],
    ),
    Case("the agent has not read that yet", START, [pod(0)], [gi(0, "", state="StateLost", workload=START, observed=0)]),
    Case(
        "a person lets it begin anew",
        gw(),
        [pod(0)],
        [gi(0, "", state="StateLost", start_anew=1)],
        ["apply chat-0 p0 on n1 epoch 1"],
    ),
    # Nodes that can take no new instance.
    Case("a node that can take none", gw(), then=["create chat-0 not on n1"], gpu_nodes=[gn("n1", ready="CannotPark"), gn("n2")]),
    Case("one whose store is full", gw(), then=["create chat-0 not on n2"], gpu_nodes=[gn("n1"), gn("n2", free="1023Mi")]),
    Case("all of them", gw(), then=["create chat-0 not on n1,n2"], gpu_nodes=[gn("n2", free="0"), gn("n1", ready="CannotPark")]),
    Case("state goes back in any case", gw(), [], [gi(0, "NVME")], ["create chat-0 for n1"], gpu_nodes=[gn("n1", ready="CannotPark")]),
    Case("who is there stays", gw(), [pod(0)], [gi(0)], gpu_nodes=[gn("n1", ready="CannotPark")]),
    Case("no place, for it avoids one that can take it by now", gw(), [pod(0, node="", avoids="n1,n2", **UNPLACED)], [gi(0, "", node="")], ["delete chat-0 keeping its state"], gpu_nodes=[gn("n1", ready="CannotPark"), gn("n2")]),
    Case("the scheduler may still place it", gw(), [pod(0, node="", avoids="n1,n2", phase="Pending")], [gi(0, "", node="")], gpu_nodes=[gn("n1", ready="CannotPark"), gn("n2")]),
    Case("no place, and none could take it", gw(), [pod(0, node="", avoids="n1,n2", **UNPLACED)], [gi(0, "", node="")], gpu_nodes=[gn("n1", ready="CannotPark"), gn("n2", free="1Mi")]),
    Case("the node that it avoids is gone", gw(), [pod(0, node="", avoids="n1", **UNPLACED)], [gi(0, "", node="")], ["delete chat-0 keeping its state"]),
    # Scale.
    Case("scale down ends the highest", gw(), [pod(0), pod(1)], [gi(0), gi(1)], ["end chat-1"]),
    Case("scale down ends the sleeper", gw(), [pod(0), pod(1)], [gi(0, "RAM"), gi(1)], ["end chat-0"]),
    Case(
        "scale down, one of each",
        TWO,
        [pod(n) for n in range(6)],
        [gi(0), gi(1, "RAM"), gi(2, "NVME"), gi(3, "", state="StateLost"), gi(4), gi(5, "", state="Starting")],
        ["end chat-3", "end chat-5", "end chat-2", "end chat-1"],
    ),
    Case("a pod that never was an instance", gw(), [pod(0), pod(1, node="", phase="Pending")], [gi(0)], ["delete chat-1"]),
    Case("its pod follows", gw(), [pod(0), pod(1)], [gi(0), gi(1, leaving=True)], ["delete chat-1"]),
    Case("the agent takes the finalizer", gw(), [pod(0)], [gi(0), gi(1, leaving=True)]),
    Case("no agent will", gw(), [pod(0)], [gi(0), gi(1, node="gone", leaving=True)], ["release chat-1"]),
    Case("none ever will", gw(), [pod(0)], [gi(0), gi(1, node="", leaving=True)], ["release chat-1"]),
    Case("none will of a node out of service", gw(), [pod(0)], [gi(0), gi(1, node="n2", leaving=True)], ["release chat-1"], nodes=[node(), node("n2", taint="node.kubernetes.io/out-of-service")]),
    Case(
        "the agent must know first where it is",
        gw(),
        [pod(0), pod(1, ending=True)],
        [gi(0), gi(1, "", node="", leaving=True)],
        ["apply chat-1 p1 on n1 epoch 1"],
    ),
    Case("scale up fills the hole", TWO, [pod(1)], [gi(1)], ["create chat-0"]),
    Case("a name that is still leaving is waited for", TWO, [pod(0), pod(1, ending=True)], [gi(0), gi(1, leaving=True)]),
    Case("scale to zero", gw(replicas=0), [pod(0)], [gi(0, "NVME")], ["end chat-0"]),
    # Rollout.
    Case("a changed template", NEW, [pod(0)], [gi(0)], ["delete chat-0"]),
    Case("one after the other", NEW2, [pod(0), pod(1)], [gi(0), gi(1)], ["delete chat-1"]),
    Case("not before the others answer", NEW2, [pod(0), pod(1, made_of=NEW, conditions={"ContainersReady": "False"})], [gi(0), gi(1)]),
    Case("what does not answer anyway", NEW2, [pod(0), pod(1, conditions={"ContainersReady": "False"})], [gi(0), gi(1)], ["delete chat-1"]),
    Case("a sleeper waits", NEW2, [pod(0), pod(1)], [gi(0), gi(1, "RAM")], ["delete chat-0"]),
    Case("whose state is lost waits for a person", NEW, [pod(0)], [gi(0, "", state="StateLost")]),
    Case("a sleeper waits for its wake", NEW, [pod(0)], [gi(0, "NVME")]),
    Case("a sleeper takes it now", NOW2, [pod(0), pod(1)], [gi(0, "RAM"), gi(1, "RAM")], ["delete chat-1"]),
    Case("two at a time", gw(image="two", replicas=2, rollout={"maxUnavailable": 2}), [pod(0), pod(1)], [gi(0), gi(1)], ["delete chat-1", "delete chat-0"]),
    # Who never sleeps.
    Case(
        "one is kept awake, the one that is",
        gw(replicas=2, idle={"minAwake": 1}),
        [pod(0), pod(1)],
        [gi(0, "RAM"), gi(1)],
        ["apply chat-1 p1 on n1 epoch 1"],
    ),
    Case("it stays the same one", gw(replicas=2, idle={"minAwake": 1}), [pod(0), pod(1)], [gi(0), gi(1, keep_awake=True)]),
    # Traffic.
    Case("who works serves", TWO, [pod(0, gate=True), pod(1, gate=True)], [gi(0), gi(1, "RAM")], ["serving chat-0 True", "serving chat-1 False"]),
    Case("nothing changes", TWO, [pod(0, gate=True, serving=True), pod(1, gate=True, serving=False)], [gi(0), gi(1, "RAM")]),
    Case(
        "all sleep: the cheapest to wake serves",
        TWO,
        [pod(0, gate=True, serving=True), pod(1, gate=True, serving=False)],
        [gi(0, "NVME"), gi(1, "RAM")],
        ["serving chat-0 False", "serving chat-1 True"],
    ),
    Case("equally cheap: who serves already", TWO, [pod(0, gate=True, serving=False), pod(1, gate=True, serving=True)], [gi(0, "RAM"), gi(1, "RAM")]),
    Case(
        "awake but not ready: a sleeper stays in",
        TWO,
        [pod(0, gate=True, serving=True, conditions={"ContainersReady": "False"}), pod(1, gate=True, serving=True)],
        [gi(0), gi(1, "RAM")],
    ),
    Case(
        "who works does not answer: a sleeper elsewhere",
        TWO,
        [pod(0, gate=True, serving=True), pod(1, node="n2", gate=True, serving=False)],
        [gi(0), gi(1, "RAM", node="n2")],
        ["serving chat-1 True"],
        nodes=[node(ready=False), node("n2")],
    ),
    Case("Spread", gw(replicas=2, traffic="Spread"), [pod(0), pod(1, gate=True, serving=False)], [gi(0), gi(1, "RAM")], ["serving chat-1 True"]),
    Case("a pod without a gate stays in", TWO, [pod(0), pod(1)], [gi(0), gi(1, "RAM")]),
    # Requests.
    Case("parked: requests are lowered", PARKS, [pod(0)], [gi(0, "NVME", workload=PARKS)], [f"resize chat-0 {LOW}"]),
    Case("already low", PARKS, [pod(0, requests=LOW)], [gi(0, "NVME", workload=PARKS)]),
    Case("awake: they are raised", PARKS, [pod(0, requests=LOW)], [gi(0, workload=PARKS)], ["resize chat-0 {'cpu': '2', 'memory': '1Gi'}"]),
    Case("in memory they are needed", PARKS, [pod(0)], [gi(0, "RAM", workload=PARKS)]),
    Case("Guaranteed keeps them", PARKS, [pod(0, qos="Guaranteed")], [gi(0, "NVME", workload=PARKS)]),
    Case("refused", PARKS, [pod(0)], [gi(0, "NVME", workload=PARKS)], findings=Findings({template.read(PARKS).hash: ""}, unsized={"p0": "no"})),
    Case("not wanted", gw(idle={"releaseRequests": False}), [pod(0)], [gi(0, "NVME")]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_next_step(case: Case) -> None:
    done = planned(case)
    assert [short(action) for action in done if not isinstance(action, actions.WriteStatus)] == case.then


def test_an_orphan_that_is_labelled_anothers_is_left_alone() -> None:
    """The API server, asked for our pods, would not name it: what is wanted of it would be wanted again and again."""
    stray = pod(0, owner=None)
    stray.metadata.labels = stray.metadata.labels | {names.WORKLOAD: "other"}
    (said,) = planned(Case("stray", gw(), [stray]))
    assert isinstance(said, actions.WriteStatus)
    assert "a pod that is nobody's" in next(c.message for c in said.status.conditions if c.type == "Degraded")


@pytest.mark.parametrize(("young", "then"), [(True, []), (False, ["delete chat-0 keeping its state"])])
def test_a_pod_that_fails_at_once_is_not_made_again_at_once(young: bool, then: list[str]) -> None:
    findings = Findings({template.read(gw()).hash: ""}, young=frozenset({"chat-0"} if young else ()))
    done = planned(Case("refused by the kubelet", gw(), [pod(0, phase="Failed")], [gi(0)], findings=findings))
    assert [short(action) for action in done if not isinstance(action, actions.WriteStatus)] == then


def test_names_of_cases_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_deleted_workload_takes_nothing_but_finalizers() -> None:
    workload = gw()
    workload.metadata.deletion_timestamp = NOW
    instances = [gi(0, leaving=True), gi(1, node="gone", leaving=True), gi(2, node="", leaving=True)]
    case = Case("deleted", workload, [pod(0), pod(1)], instances)
    assert [short(action) for action in planned(case)] == ["release chat-1", "release chat-2"]


@pytest.mark.parametrize("name", ["chat", "chat-", "chat-x", "chat-01", "chat--1", "other-1", "chat-1-1", "chat-²"])
def test_names_that_are_not_ours(name: str) -> None:
    stray = pod(0)
    stray.metadata.name = name
    assert [short(action) for action in planned(Case("stray", gw(), [stray]))][:1] == ["create chat-0"]
