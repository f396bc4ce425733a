"""The controller with a real API server and its own rights; the test plays scheduler, kubelets and agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from controller_bed import CONTAINER, Stage, controller_account, open_controller, open_stage, until
from kybernate_controller import known, placement

from kybernate.kube.errors import ForbiddenError
from kybernate.kube.resource import GPU_INSTANCES, GPU_WORKLOADS, NODES, PODS, SECRETS
from kybernate.lab.cluster.apiserver import ApiServerBed


@pytest_asyncio.fixture
async def stage(apiserver: ApiServerBed, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(known, "BELIEVED_SECONDS", 0.5)
    async with open_stage(apiserver) as stage:
        yield stage


def serving(pod: dict[str, Any]) -> str | None:
    conditions = pod["status"].get("conditions", ())
    return next((c["status"] for c in conditions if c["type"] == "kybernate.io/serving"), None)


def requests(pod: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = pod["spec"]["containers"][0]["resources"]["requests"]
    return found


async def test_a_workload_becomes_a_pod_an_instance_and_a_status(apiserver: ApiServerBed, stage: Stage) -> None:
    node = await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat", replicas=1, idle={"suspendAfter": "60s", "parkAfter": "10m"})
        status = await stage.until_ready("chat", 1, awake=1, updatedReplicas=1)
        pod, instance = (await stage.pods())["chat-0"], (await stage.instances())["chat-0"]
        assert pod["spec"]["runtimeClassName"] == "kybernate"
        assert pod["metadata"]["annotations"]["kybernate.io/containers"] == "server"
        assert pod["metadata"]["labels"]["app"] == "chat"
        assert instance["spec"]["podUID"] == pod["metadata"]["uid"]
        assert instance["spec"]["nodeName"] == node
        assert instance["spec"]["epoch"] == 1
        assert instance["spec"]["policy"]["ports"] == [8080]
        assert instance["spec"]["policy"]["parkAfter"] == "10m"
        assert instance["metadata"]["finalizers"] == ["kybernate.io/state"]
        assert status["selector"] == "kybernate.io/workload=chat"
        assert status["parked"] == 0
        stage.tiers["chat-0"] = "NVME"
        await stage.until_ready("chat", 1, awake=0, parked=1)
        assert (await stage.pods())["chat-0"]["metadata"]["uid"] == pod["metadata"]["uid"]
        assert await until(lambda: stage.events("PodCreated"), "the event")


async def test_a_changed_policy_and_an_order_reach_the_instance(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat", idle={"suspendAfter": "60s", "parkAfter": "10m"})
        await stage.until_ready("chat", 1, awake=1)
        await stage.workload("chat", idle={"suspendAfter": "5s"}, state="Suspended", onStateLost="Start")

        async def changed() -> Any:
            spec = (await stage.instances())["chat-0"]["spec"]
            return spec if spec["state"] == "Suspended" else None

        spec = await until(changed, "the order has arrived")
        assert spec["policy"]["suspendAfter"] == "5s"
        assert "parkAfter" not in spec["policy"]
        assert spec["policy"]["onStateLost"] == "Start"
        assert spec["epoch"] == 1


async def test_scale_keeps_who_works(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat", replicas=0)
        await stage.until_ready("chat", 0)
        assert await stage.pods() == {}
        await stage.scale("chat", 3)
        await stage.until_ready("chat", 3, awake=3)
        stage.tiers |= {"chat-0": "RAM", "chat-2": "NVME"}
        await stage.until_ready("chat", 3, awake=1, suspended=1, parked=1)
        kept = (await stage.pods())["chat-1"]["metadata"]["uid"]
        await stage.scale("chat", 1)
        await stage.until_ready("chat", 1, awake=1)
        pods, instances = await stage.pods(), await stage.instances()
        assert set(pods) == set(instances) == {"chat-1"}
        assert pods["chat-1"]["metadata"]["uid"] == kept
        await stage.scale("chat", 2)
        await stage.until_ready("chat", 2, awake=2)
        assert set(await stage.pods()) == {"chat-0", "chat-1"}
        assert (await stage.instances())["chat-0"]["spec"]["epoch"] == 1
        await stage.scale("chat", 0)
        await stage.until_ready("chat", 0)
        assert await stage.pods() == await stage.instances() == {}


async def test_a_rollout_takes_who_is_awake_and_waits_for_sleepers(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat", replicas=3)
        await stage.until_ready("chat", 3, awake=3)
        stage.tiers["chat-1"] = "RAM"
        await stage.until_ready("chat", 3, awake=2, suspended=1)
        before = {name: pod["metadata"]["uid"] for name, pod in (await stage.pods()).items()}
        await stage.workload("chat", replicas=3, image="localhost/chat:2")
        await stage.until_ready("chat", 3, updatedReplicas=2, awake=2, suspended=1)
        after = {name: pod["metadata"]["uid"] for name, pod in (await stage.pods()).items()}
        assert {name for name in after if after[name] == before[name]} == {"chat-1"}
        assert (await stage.condition("chat", "Progressing"))["reason"] == "WaitsForWake"
        del stage.tiers["chat-1"]
        await stage.until_ready("chat", 3, updatedReplicas=3, awake=3)
        images = {pod["spec"]["containers"][0]["image"] for pod in (await stage.pods()).values()}
        assert images == {"localhost/chat:2"}


async def test_an_eviction_keeps_the_state_on_its_node(apiserver: ApiServerBed, stage: Stage) -> None:
    node = await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat")
        await stage.until_ready("chat", 1, awake=1)
        other = await stage.node("a0")
        await stage.client.merge_patch(NODES, dict, node, {"spec": {"unschedulable": True}})
        await stage.evict("chat-0")
        waits = await until(lambda: degraded(stage, "WaitsForNode"), "it waits for its node")
        assert f"node {node} is cordoned" in waits["message"]
        pod = (await stage.pods())["chat-0"]
        assert "nodeName" not in pod["spec"]
        status = await stage.status("chat")
        assert (status["parked"], status["awake"]) == (1, 0)
        first = (await stage.instances())["chat-0"]["spec"]
        assert (first["nodeName"], first["epoch"], first["podUID"]) == (node, 2, pod["metadata"]["uid"])
        await stage.client.merge_patch(NODES, dict, node, {"spec": {"unschedulable": None}})
        await stage.until_ready("chat", 1, parked=1)
        spec = (await stage.instances())["chat-0"]["spec"]
        assert (spec["nodeName"], spec["epoch"], spec["podUID"]) == (node, 2, pod["metadata"]["uid"])
        assert node != other
        assert stage.tiers["chat-0"] == "NVME"


async def test_a_new_instance_does_not_go_where_the_agent_says_no(apiserver: ApiServerBed, stage: Stage) -> None:
    ill, well = await stage.node("n1"), await stage.node("n2")
    await stage.say_gpu_node(ill, ready=False)
    async with open_controller(apiserver) as (controller, _):
        await stage.workload("chat", replicas=2)
        await stage.until_ready("chat", 2, awake=2)
        assert {pod["spec"]["nodeName"] for pod in (await stage.pods()).values()} == {well}
        assert (await until(lambda: stage.events("PodCreated"), "the event"))[0].endswith(f"not on {ill} (CannotPark)")
        await stage.say_gpu_node(well, free="900Mi")
        await until(lambda: refused(controller, well), "the controller has read it")
        before = {name: pod["metadata"]["uid"] for name, pod in (await stage.pods()).items()}
        await stage.scale("chat", 3)
        assert await until(lambda: degraded(stage, "Unschedulable"), "neither takes it")
        await stage.say_gpu_node(ill)
        await stage.until_ready("chat", 3, awake=3)
        pods = await stage.pods()
        assert pods.pop("chat-2")["spec"]["nodeName"] == ill
        assert {name: pod["metadata"]["uid"] for name, pod in pods.items()} == before, "who has a place keeps it"


async def test_a_deletion_gives_the_state_up(apiserver: ApiServerBed, stage: Stage) -> None:
    node = await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat")
        await stage.until_ready("chat", 1, awake=1)
        stage.tiers["chat-0"] = "NVME"
        await stage.until_ready("chat", 1, parked=1)
        await stage.client.merge_patch(NODES, dict, node, {"spec": {"unschedulable": True}})
        other = await stage.node("n2")
        await stage.client.delete(PODS, "chat-0", stage.namespace)
        await stage.until_ready("chat", 1, awake=1, parked=0)
        spec = (await stage.instances())["chat-0"]["spec"]
        assert (spec["nodeName"], spec["epoch"]) == (other, 3)  # one pod was for the node that takes none


async def test_a_pod_that_failed_is_made_again_with_its_state(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat")
        await stage.until_ready("chat", 1, awake=1)
        stage.tiers["chat-0"] = "NVME"
        await stage.until_ready("chat", 1, parked=1)
        before = (await stage.pods())["chat-0"]["metadata"]["uid"]
        body = {"metadata": {"name": "chat-0"}, "status": {"phase": "Failed", "reason": "Evicted"}}
        await stage.client.apply(PODS, body, stage.namespace, manager="kubelet-end", subresource="status", into=dict)

        async def made_again() -> bool:
            pod = (await stage.pods()).get("chat-0")
            return pod is not None and pod["metadata"]["uid"] != before

        await until(made_again, "the pod is made again")
        await stage.until_ready("chat", 1, parked=1)


async def test_a_strangers_pod_is_left_alone(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    stranger = {"metadata": {"name": "chat-0"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    await stage.client.create(PODS, stranger, stage.namespace, into=dict)
    async with open_controller(apiserver):
        await stage.workload("chat", replicas=2)
        said = await until(lambda: degraded(stage, "NameTaken"), "the name is taken")
        assert "chat-0: the name is taken by a pod that is nobody's" in said["message"]
        pods = await stage.pods()
        assert "ownerReferences" not in pods["chat-0"]["metadata"]
        assert set(await stage.instances()) == {"chat-1"}
        await stage.client.delete(PODS, "chat-0", stage.namespace, grace_seconds=0)
        await stage.until_ready("chat", 2, awake=2)


async def test_an_orphan_is_adopted(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat")
        await stage.until_ready("chat", 1, awake=1)
        uid = (await stage.pods())["chat-0"]["metadata"]["uid"]
        await stage.client.merge_patch(PODS, dict, "chat-0", {"metadata": {"ownerReferences": None}}, stage.namespace)

        async def owned() -> bool:
            return bool((await stage.pods())["chat-0"]["metadata"].get("ownerReferences"))

        await until(owned, "it has an owner again")
        assert (await stage.pods())["chat-0"]["metadata"]["uid"] == uid


async def test_a_lost_state_is_said_and_held_until_somebody_decides(apiserver: ApiServerBed, stage: Stage) -> None:
    node = await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat")
        await stage.until_ready("chat", 1, awake=1)
        stage.tiers["chat-0"] = "NVME"
        await stage.until_ready("chat", 1, parked=1)
        other = await stage.node("n2")
        stage.nodes.discard(node)
        await stage.client.delete(NODES, node)
        await stage.client.delete(PODS, "chat-0", stage.namespace, grace_seconds=0)  # Kubernetes collects such pods
        said = await until(lambda: holds(stage, "StateLost"), "the loss is said")
        assert f"its state lay on node {node}, which no longer exists" in said["message"]
        assert await stage.pods() == {}
        assert await until(lambda: stage.events("StateLost"), "the event")
        await stage.workload("chat", onStateLost="Start")
        stage.tiers.clear()
        await stage.until_ready("chat", 1, awake=1, parked=0)
        spec = (await stage.instances())["chat-0"]["spec"]
        assert (spec["nodeName"], spec["startAnew"], spec["epoch"]) == (other, 1, 2)
        assert (await stage.condition("chat", "StateLost"))["status"] == "False"
        assert await until(lambda: stage.events("StateGivenUp"), "the event")


@pytest.mark.parametrize(
    ("slip", "objection"),
    [
        ({"volumeMounts": [{"name": "nowhere", "mountPath": "/x"}]}, 'volumeMounts[0].name: Not found: "nowhere"'),
        ({"livenesProbe": {"tcpSocket": {"port": 8080}}}, 'unknown field "spec.containers[0].livenesProbe"'),
    ],
    ids=["wrong", "unknown"],
)
async def test_a_refused_template_changes_nothing(
    apiserver: ApiServerBed, stage: Stage, slip: dict[str, Any], objection: str
) -> None:
    await stage.node("n1")
    broken = [CONTAINER | slip]
    async with open_controller(apiserver):
        await stage.workload("chat")
        await stage.until_ready("chat", 1, awake=1)
        before = (await stage.pods())["chat-0"]["metadata"]["uid"]
        await stage.workload("chat", pod_containers=broken)
        said = await until(lambda: holds(stage, "TemplateInvalid"), "the objection is said")
        assert objection in said["message"]
        assert (await stage.condition("chat", "Ready"))["status"] == "True"
        assert (await stage.pods())["chat-0"]["metadata"]["uid"] == before
        await stage.workload("chat", image="localhost/chat:2")
        await stage.until_ready("chat", 1, awake=1, updatedReplicas=1)
        assert (await stage.condition("chat", "TemplateInvalid"))["status"] == "False"


async def test_one_bad_instance_is_named(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    stage.broken.add("chat-1")
    async with open_controller(apiserver):
        await stage.workload("chat", replicas=2)
        said = await until(lambda: degraded(stage, "ImagePullBackOff"), "what is wrong is said")
        assert said["message"] == "chat-1: container server: no such image"
        assert (await stage.condition("chat", "Ready"))["message"] == "1 of 2 instances answer; missing: chat-1"


async def test_sleepers_leave_the_service_while_another_is_awake(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat", replicas=2)
        await stage.until_ready("chat", 2, awake=2)

        def gates(*wanted: str) -> Any:
            async def reached() -> bool:
                pods = await stage.pods()
                return [serving(pods[name]) for name in ("chat-0", "chat-1")] == list(wanted)

            return until(reached, f"gates are {wanted}")

        await gates("True", "True")
        stage.tiers["chat-0"] = "RAM"
        await gates("False", "True")
        stage.tiers["chat-1"] = "NVME"
        await gates("True", "False")
        del stage.tiers["chat-1"]
        await gates("False", "True")
        ready = {c["type"] for c in (await stage.pods())["chat-0"]["status"]["conditions"]}
        assert {"ContainersReady", "kybernate.io/serving"} <= ready


async def test_a_parked_pod_gives_its_requests_back(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat", idle={"suspendAfter": "1m", "parkAfter": "1m"})
        await stage.until_ready("chat", 1, awake=1)
        asked = requests((await stage.pods())["chat-0"])
        assert asked == {"cpu": "500m", "memory": "1Gi"}

        async def lowered() -> bool:
            return requests((await stage.pods())["chat-0"]) == {"cpu": "10m", "memory": "16Mi"}

        async def raised() -> bool:
            return requests((await stage.pods())["chat-0"]) == asked

        stage.tiers["chat-0"] = "NVME"
        await until(lowered, "requests are lowered")
        assert (await stage.condition("chat", "RequestsReleased"))["status"] == "True"
        del stage.tiers["chat-0"]
        await until(raised, "requests are raised")
        assert (await stage.pods())["chat-0"]["status"]["qosClass"] == "Burstable"


async def test_a_guaranteed_pod_keeps_its_requests_and_that_is_said(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    amounts = {"cpu": "1", "memory": "1Gi"}
    guaranteed = [CONTAINER | {"resources": {"requests": amounts, "limits": amounts}}]
    async with open_controller(apiserver):
        await stage.workload("chat", idle={"suspendAfter": "1m", "parkAfter": "1m"}, pod_containers=guaranteed)
        await stage.until_ready("chat", 1, awake=1)
        stage.tiers["chat-0"] = "NVME"
        await stage.until_ready("chat", 1, parked=1)
        assert "QoS class Guaranteed" in (await stage.condition("chat", "RequestsReleased"))["message"]
        assert requests((await stage.pods())["chat-0"]) == amounts


async def test_a_transition_costs_one_write_and_quiet_costs_none(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    async with open_controller(apiserver) as (controller, client):
        await stage.workload("chat", replicas=1)
        await stage.until_ready("chat", 1, awake=1)
        await until(lambda: idle(controller), "nothing is left to do")
        before = client.requests.copy()
        stage.tiers["chat-0"] = "RAM"
        await stage.until_ready("chat", 1, suspended=1)
        await until(lambda: idle(controller), "nothing is left to do")
        assert client.requests - before == {("apply", "gpuworkloads.kybernate.io/status"): 1}
        before = client.requests.copy()
        for _ in range(5):  # as after a restart: all is looked at, nothing is written
            controller._workload_changed(next(iter(changes(controller))))
            await until(lambda: idle(controller), "nothing is left to do")
        assert client.requests == before


async def test_a_deleted_workload_leaves_no_finalizer_behind(apiserver: ApiServerBed, stage: Stage) -> None:
    node = await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat", replicas=2)
        await stage.until_ready("chat", 2, awake=2)
        stage.nodes.discard(node)
        stage.silent.add(node)
        await stage.client.delete(GPU_WORKLOADS, "chat", stage.namespace)
        for name in ("chat-0", "chat-1"):  # Kubernetes' garbage collector
            await stage.client.delete(GPU_INSTANCES, name, stage.namespace)
            await stage.client.delete(PODS, name, stage.namespace, grace_seconds=0)
        await asyncio.sleep(0)
        assert len(await stage.instances()) == 2
        await stage.client.delete(NODES, node)

        async def gone() -> bool:
            return not await stage.instances()

        await until(gone, "no instance is left")


async def test_the_controller_may_do_no_more_than_it_does(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    await stage.workload("chat")
    async with apiserver.client(controller_account(apiserver)) as client:
        assert (await client.list(GPU_WORKLOADS, dict[str, Any], stage.namespace)).items
        with pytest.raises(ForbiddenError):
            await client.list(SECRETS, dict, stage.namespace)
        with pytest.raises(ForbiddenError):
            await client.delete(GPU_WORKLOADS, "chat", stage.namespace)
        with pytest.raises(ForbiddenError):
            await client.merge_patch(GPU_WORKLOADS, dict, "chat", {"spec": {"replicas": 2}}, stage.namespace)
        patch = {"status": {"tier": "RAM"}}
        with pytest.raises(ForbiddenError):
            await client.merge_patch(GPU_INSTANCES, dict, "chat-0", patch, stage.namespace, subresource="status")
        with pytest.raises(ForbiddenError):
            await client.merge_patch(NODES, dict, "n1", {"spec": {"unschedulable": True}})


async def degraded(stage: Stage, reason: str) -> dict[str, Any] | None:
    found = await stage.condition("chat", "Degraded")
    return found if found.get("reason") == reason else None


async def refused(controller: Any, node: str) -> bool:
    return bool(placement.refusal(controller.gpu_nodes.get("", node)))


async def holds(stage: Stage, kind: str) -> dict[str, Any] | None:
    found = await stage.condition("chat", kind)
    return found if found.get("status") == "True" else None


async def idle(controller: Any) -> bool:
    return bool(controller.queue.idle)


def changes(controller: Any) -> Any:
    from kybernate.kube.cache import Change, Key

    for workload in controller.workloads.items():
        yield Change(Key(workload.metadata.namespace, workload.metadata.name), None, workload)
