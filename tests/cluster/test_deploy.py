"""`kubectl apply -k deploy/base` on a cluster that has never heard of us."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_bed import ask, eventually
from cluster_bed import CLASS, ClusterBed, pod
from deploy_bed import (
    CONFIG,
    NAMESPACE,
    PREFIX,
    Agent,
    RefusedError,
    await_rollout,
    changed_image,
    deploy,
    deployed_cluster,
    keepers,
    running,
    starts,
    version,
    workload,
)
from product_caller import Caller

ALWAYS = {"suspendAfter": "1h"}
SOON = {"suspendAfter": "1s", "parkAfter": "1s"}


@pytest.fixture(scope="module")
def bed() -> Iterator[ClusterBed]:
    with deployed_cluster() as made:
        yield made


def state(bed: ClusterBed, name: str) -> str:
    return str((bed.get("gi", name).get("status") or {}).get("state"))


def test_the_node_offers_the_runtime_beside_what_it_had(bed: ClusterBed) -> None:
    dumped = tomllib.loads(bed.node.run(["containerd", "--config", CONFIG, "config", "dump"]))
    known = dumped["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert set(known) == {"runc", CLASS}
    assert known[CLASS]["options"]["BinaryName"] == f"{PREFIX}/bin/kybernate-runc"


def test_a_pod_of_the_class_that_nobody_manages_runs_as_any_other(bed: ClusterBed) -> None:
    bed.apply(pod("plain", runtimeClassName=CLASS))
    try:
        bed.wait("pod/plain")
        assert bed.items("gi") == []
    finally:
        bed.delete("pod/plain")


def test_a_workload_sleeps_on_the_nodes_disk_and_wakes_by_a_call(bed: ClusterBed) -> None:
    with running(bed, workload("sleeper", **SOON)) as (ip,):
        first = ask(ip)
        eventually(lambda: state(bed, "sleeper-0") == "Parked", 60, "it is parked")
        second = ask(ip)
        assert (second.count, second.born) == (first.count + 1, first.born)
        assert keepers(bed) == {version(bed)}
        assert "secrets" not in bed.node.run(["ls", "/run"])  # a pod's token stays in the pod


def test_an_exec_and_the_agents_own_command_reach_a_sleeper(bed: ClusterBed) -> None:
    with running(bed, workload("entered", **SOON)):
        eventually(lambda: state(bed, "entered-0") == "Parked", 60, "it is parked")
        said = bed.kubectl("exec", "-n", NAMESPACE, "ds/kybernate-agent", "-c", "agent", "--", "kybernate", "get")
        assert "default.entered-0" in said
        assert bed.kubectl("exec", "entered-0", "--", "/usr/bin/echo", "awake") == "awake\n"


@pytest.mark.parametrize("idle", [ALWAYS, SOON], ids=["awake", "parked"])
def test_a_killed_keeper_costs_nothing(bed: ClusterBed, idle: dict[str, str]) -> None:
    """The agent saves what it left from within its pod: runc and CRIU run where the node has its mounts."""
    with running(bed, workload("orphan", **idle)) as (ip,):
        first = ask(ip)
        if idle is SOON:
            eventually(lambda: state(bed, "orphan-0") == "Parked", 60, "it is parked")
        bed.node.run(["pkill", "-KILL", "-x", "kyb-keeper"])

        def anew() -> bool:
            return bool(bed.get("pod", "orphan-0")["status"]["containerStatuses"][0]["restartCount"] == 1)

        eventually(anew, 60, "its container was made anew")
        second = eventually(lambda: ask(ip), 60, "it answers")
        assert (second.count, second.born) == (first.count + 1, first.born)


def test_a_checkpoint_becomes_a_pod_with_the_rights_that_are_given(bed: ClusterBed) -> None:
    def over(kind: str, name: str, *phases: str) -> str:
        def look() -> str:
            found = (bed.get(kind, name).get("status") or {}).get("phase", "")
            return str(found) if found in phases else ""

        return eventually(look, 90, f"{kind} {name} is {phases}")

    def make(kind: str, name: str, **spec: Any) -> None:
        meta = {"name": name, "namespace": "default"}
        bed.apply({"apiVersion": "kybernate.io/v1alpha1", "kind": kind, "metadata": meta, "spec": spec})

    with running(bed, workload("origin", **SOON)) as (ip,):
        first = ask(ip)
        eventually(lambda: state(bed, "origin-0") == "Parked", 60, "it is parked")
        make("GpuCheckpoint", "deployed", source={"instance": "origin-0"})
        try:
            assert over("gck", "deployed", "Ready", "Failed") == "Ready"
            assert state(bed, "origin-0") == "Parked"
            make("GpuRestoreJob", "deployed", checkpoint="deployed", podName="restored")
            assert over("grj", "deployed", "Succeeded", "Failed") == "Succeeded"
            bed.wait("pod/restored")
            for address in (bed.pod_ip("restored"), ip):
                again = ask(address)
                assert (again.count, again.born) == (first.count + 1, first.born)
        finally:
            bed.delete("pod/restored", "grj/deployed", "gck/deployed")


def test_applied_again_nothing_happens(bed: ClusterBed) -> None:
    before = starts(bed), version(bed), bed.node.run(["stat", "-c", "%Y %i", CONFIG])
    generations = [bed.get("ds", "kybernate-agent", NAMESPACE)["metadata"]["generation"]]
    deploy(bed)
    bed.kubectl("rollout", "restart", "ds/kybernate-agent", "-n", NAMESPACE)  # the installer runs again, at least
    await_rollout(bed)
    assert (starts(bed), version(bed), bed.node.run(["stat", "-c", "%Y %i", CONFIG])) == before
    assert bed.get("ds", "kybernate-agent", NAMESPACE)["metadata"]["generation"] == generations[0] + 1


def test_an_upgrade_under_calls_loses_nothing(bed: ClusterBed, tmp_path: Path) -> None:
    """Every call is answered, in order, by the same processes; their keepers stay, new ones are of the new version."""
    old, began = version(bed), starts(bed)
    image = changed_image(tmp_path, "another")
    bed.node.load_image(image)
    with running(bed, workload("busy", **ALWAYS), workload("sleepy", **SOON)) as ips:
        with Caller(ips[0], 0.05) as busy, Caller(ips[1], 3.5) as sleepy:
            eventually(lambda: len(sleepy.answers) > 1, 60, "the sleeper has slept and woken")
            named = [f"{name}={image.name}" for name in ("install", "agent")]
            bed.kubectl("set", "image", "ds/kybernate-agent", *named, "-n", NAMESPACE)
            await_rollout(bed)
            after = len(busy.answers), len(sleepy.answers)
            eventually(lambda: len(sleepy.answers) > after[1] + 1, 60, "the sleeper has slept and woken again")
        for caller in (busy, sleepy):
            caller.check()
            assert caller.refused == 0
            assert caller.answers[0].count == 1
        assert len(busy.answers) > after[0]
        new = version(bed)
        assert new != old
        assert starts(bed) == began
        assert keepers(bed) == {old}
        with running(bed, workload("young", **ALWAYS)):
            assert keepers(bed) == {old, new}
    assert sorted(bed.node.run(["ls", f"{PREFIX}/versions"]).split()) == sorted([old, new])


def gpu_instance(name: str, node: str, owner: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "ownerReferences": [owner] if owner else []}
    whole = {"nodeName": node, "pod": name, "policy": {"container": "app"}, **spec}
    return {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuInstance", "metadata": meta, "spec": whole}


INSTANCES = "/apis/kybernate.io/v1alpha1/namespaces/default/gpuinstances"
NODES = "/apis/kybernate.io/v1alpha1/gpunodes"
EVENTS = "/api/v1/namespaces/default/events"
STATUS = {"status": {"observedGeneration": 1}}
NO_FINALIZERS = {"metadata": {"finalizers": None, "labels": {"tried": "yes"}}}
WRITES = "writes only GpuInstances whose spec.nodeName is that node"


@pytest.fixture(scope="module")
def agent(bed: ClusterBed) -> Agent:
    return Agent.of_the_node(bed)


@pytest.fixture
def own(bed: ClusterBed) -> Iterator[str]:
    """The path of an instance of this node, with nothing on it."""
    bed.apply(gpu_instance("try-own", bed.node.name))
    yield f"{INSTANCES}/try-own"
    bed.delete("gi/try-own")


@pytest.fixture(params=["n9", ""], ids=["another's", "nobody's"])
def foreign(bed: ClusterBed, request: pytest.FixtureRequest) -> Iterator[str]:
    """The path of an instance that is not this node's."""
    bed.apply(gpu_instance("try-foreign", request.param))
    yield f"{INSTANCES}/try-foreign"
    bed.delete("gi/try-foreign")


def test_an_agents_token_is_good_for_its_own_nodes_objects(bed: ClusterBed, agent: Agent, own: str) -> None:
    agent.patch(f"{own}/status", STATUS)
    agent.patch(own, NO_FINALIZERS)
    agent.patch(f"{NODES}/{bed.node.name}/status", STATUS)


def test_an_agent_makes_the_instance_of_an_annotated_pod(bed: ClusterBed, agent: Agent) -> None:
    bed.apply(pod("try-made"))
    try:
        uid = bed.get("pod", "try-made")["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "Pod", "name": "try-made", "uid": uid}
        agent.create(INSTANCES, gpu_instance("try-made", bed.node.name, owner))
        agent.patch(f"{INSTANCES}/try-made", {"spec": {"policy": {"suspendAfter": "5s"}}})
    finally:
        bed.delete("gi/try-made", "pod/try-made")


def test_an_agent_makes_no_instance_of_a_workload(bed: ClusterBed, agent: Agent) -> None:
    """The controller would count it, and end another one for it, on another node perhaps."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "chat-7", "uid": "any"}
    with pytest.raises(RefusedError, match="a GpuWorkload's are the controller's"):
        agent.create(INSTANCES, gpu_instance("chat-7", bed.node.name, owner, workload="chat", ordinal=7))


def test_another_nodes_objects_are_refused(bed: ClusterBed, agent: Agent, foreign: str) -> None:
    whose = f"the agent of node {bed.node.name} {WRITES}"
    for path, change in (
        (f"{foreign}/status", STATUS),
        (foreign, NO_FINALIZERS),
        (foreign, {"spec": {"nodeName": bed.node.name}}),
    ):
        with pytest.raises(RefusedError, match=whose):
            agent.patch(path, change)


def test_what_is_the_controllers_is_refused(agent: Agent, bed: ClusterBed, own: str) -> None:
    with pytest.raises(RefusedError, match=WRITES):
        agent.patch(own, {"spec": {"nodeName": "n9"}})
    with pytest.raises(RefusedError, match="others are the controller's"):
        agent.patch(own, {"spec": {"state": "Running"}})
    with pytest.raises(RefusedError, match=WRITES):
        agent.create(INSTANCES, gpu_instance("try-made", "n9"))
    with pytest.raises(RefusedError, match="others are the controller's"):
        agent.create(INSTANCES, gpu_instance("try-made", bed.node.name))


def test_another_nodes_gpunode_is_refused(agent: Agent) -> None:
    node = {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuNode", "metadata": {"name": "n9"}}
    with pytest.raises(RefusedError, match="GpuNode of its own node only"):
        agent.create(NODES, node)


def test_another_nodes_checkpoint_is_refused(bed: ClusterBed, agent: Agent) -> None:
    meta = {"name": "try-copy"}
    kind = {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuCheckpoint", "metadata": meta}
    bed.apply({**kind, "spec": {"source": {"instance": "none"}}})
    try:
        path = "/apis/kybernate.io/v1alpha1/namespaces/default/gpucheckpoints/try-copy"
        with pytest.raises(RefusedError, match="writes only GpuCheckpoints"):
            agent.patch(f"{path}/status", {"status": {"node": bed.node.name}})
        with pytest.raises(RefusedError, match="writes only GpuCheckpoints"):
            agent.patch(path, NO_FINALIZERS)
    finally:
        bed.delete("gpucheckpoint/try-copy")


def test_an_event_says_whose_it_is(bed: ClusterBed, agent: Agent) -> None:
    def event(source: dict[str, str]) -> dict[str, Any]:
        about = {"kind": "Pod", "namespace": "default", "name": "any"}
        meta = {"generateName": "try-"}
        return {"metadata": meta, "involvedObject": about, "reason": "Tried", "type": "Normal", "source": source}

    agent.create(EVENTS, event({"component": "kybernate-agent", "host": bed.node.name}))
    for source in ({"component": "kybernate-agent", "host": "n9"}, {"component": "kubelet", "host": bed.node.name}, {}):
        with pytest.raises(RefusedError, match="its node's agent's"):
            agent.create(EVENTS, event(source))


def test_a_token_that_no_kubelet_fetched_is_good_for_nothing(bed: ClusterBed, own: str, foreign: str) -> None:
    stray = Agent(bed, bed.kubectl("create", "token", "kybernate-agent", "-n", NAMESPACE).strip())
    for path in (own, foreign):
        with pytest.raises(RefusedError, match="bound to no node"):
            stray.patch(f"{path}/status", STATUS)
    with pytest.raises(RefusedError, match="GpuNode of its own node only"):
        stray.patch(f"{NODES}/{bed.node.name}/status", STATUS)


MAY_NOT = {
    "kybernate-agent": [
        ("get", "secrets"), ("get", "configmaps"), ("create", "pods"), ("delete", "pods"), ("patch", "pods"),
        ("patch", "pods/status"), ("create", "pods/exec"), ("patch", "nodes"), ("list", "nodes"),
        ("get", "gpuworkloads.kybernate.io"), ("delete", "gpuinstances.kybernate.io"),
        ("update", "gpuinstances.kybernate.io"), ("delete", "gpunodes.kybernate.io"), ("get", "serviceaccounts"),
        ("create", "serviceaccounts/token"), ("impersonate", "users"), ("get", "leases.coordination.k8s.io"),
        ("create", "gpucheckpoints.kybernate.io"), ("delete", "gpucheckpoints.kybernate.io"),
        ("get", "podtemplates"), ("get", "gpurestorejobs.kybernate.io"),
    ],
    "kybernate-controller": [
        ("get", "secrets"), ("get", "configmaps"), ("patch", "nodes"), ("create", "pods/exec"),
        ("patch", "gpuworkloads.kybernate.io"), ("delete", "gpuworkloads.kybernate.io"),
        ("patch", "gpuinstances/status.kybernate.io"), ("create", "serviceaccounts/token"), ("impersonate", "users"),
        ("create", "clusterroles.rbac.authorization.k8s.io"), ("delete", "gpucheckpoints.kybernate.io"),
        ("list", "podtemplates"), ("patch", "podtemplates"), ("delete", "podtemplates"),
        ("patch", "gpurestorejobs.kybernate.io"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("account", MAY_NOT)
def test_an_account_may_not_do_what_it_does_not_do(bed: ClusterBed, account: str) -> None:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": "default"},
    }
    words = ["create", "--raw", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "-f", "-"]
    said = bed.kubectl(*words, f"--as=system:serviceaccount:{NAMESPACE}:{account}", stdin=json.dumps(review))
    rules = json.loads(said)["status"]["resourceRules"]

    def covers(listed: list[str], word: str) -> bool:
        return word in listed or "*" in listed

    def allowed(verb: str, what: str) -> bool:
        resource, _, group = what.partition(".")
        return any(
            covers(rule["verbs"], verb) and covers(rule["resources"], resource) and covers(rule["apiGroups"], group)
            for rule in rules
        )

    assert allowed("list", "pods"), "the review says what is allowed"
    assert [(verb, what) for verb, what in MAY_NOT[account] if allowed(verb, what)] == []
