"""The controller's part in checkpoints and restores, killed after any of its writes; the test plays the agent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from controller_bed import install
from kybernate_controller.checkpoints import CheckpointReconciler, template_name
from kybernate_controller.progress import Pod
from kybernate_controller.restorejobs import RestoreJobReconciler

from kybernate.api import names
from kybernate.api.gpucheckpoint import GpuCheckpoint
from kybernate.api.gpuinstance import GpuInstance
from kybernate.api.gpurestorejob import GpuRestoreJob
from kybernate.kube.client import Client
from kybernate.kube.connection import Request
from kybernate.kube.errors import ApiNotFoundError
from kybernate.kube.events import Recorder
from kybernate.kube.resource import (
    GPU_CHECKPOINTS,
    GPU_INSTANCES,
    GPU_RESTORE_JOBS,
    NODES,
    POD_TEMPLATES,
    PODS,
    Resource,
)
from kybernate.lab.cluster.apiserver import ApiServerBed

_numbers = itertools.count(1)
Dict = dict[str, Any]
WRITES = 6
"""More than either of them ever does at once."""


class Killed(BaseException):
    """Right after a write, which was done."""


class Mortal(Client):
    """A client that dies with its controller after so many writes; None: never."""

    left: int | None = None

    async def request(self, call: Request, *, deadline_seconds: float | None = None) -> bytes:
        answer = await super().request(call, deadline_seconds=deadline_seconds)
        if call.method != "GET" and self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
        return answer


class Seen:
    """What a cache of the kind would hold: all of it, as it was at the last `look`."""

    def __init__(self, resource: Resource, kind: type[Any]) -> None:
        self._resource, self._kind, self._objects = resource, kind, {}  # type: ignore[var-annotated]

    async def look(self, client: Client, namespace: str) -> None:
        found = await client.list(self._resource, self._kind, namespace)
        self._objects = {(namespace, each.metadata.name): each for each in found.items}

    def get(self, namespace: str, name: str) -> Any:
        return self._objects.get((namespace, name))


@dataclass
class Stage:
    """One namespace with a source, and the two reconcilers, made anew for each of their lives."""

    client: Mortal
    recorder: Recorder
    namespace: str

    async def live(self, what: str, name: str, dies_after: int | None) -> None:
        """One life of a controller: it looks once, and is killed after so many writes."""
        kinds: list[tuple[Resource, type[Any]]] = [
            (GPU_CHECKPOINTS, GpuCheckpoint), (GPU_RESTORE_JOBS, GpuRestoreJob), (GPU_INSTANCES, GpuInstance),
            (PODS, Pod),
        ]  # fmt: skip
        held = [Seen(*kind) for kind in kinds]
        for each in held:
            await each.look(self.client, self.namespace)
        checkpoints, jobs, instances, pods = held
        checkpoint = CheckpointReconciler(self.client, checkpoints, self.recorder, lambda: None)
        job = RestoreJobReconciler(
            self.client, checkpoints=checkpoints, jobs=jobs, instances=instances, pods=pods, recorder=self.recorder,
            may_write=lambda: None,
        )  # fmt: skip
        self.client.left = dies_after
        try:
            with contextlib.suppress(Killed):
                await (checkpoint if what == "checkpoint" else job)(self.namespace, name)
        finally:
            self.client.left = None

    async def get(self, resource: Resource, name: str) -> Dict:
        found: Dict = await self.client.get(resource, dict, name, self.namespace)
        return found

    async def phase(self, resource: Resource, name: str) -> str:
        return str((await self.get(resource, name)).get("status", {}).get("phase", ""))

    async def say(self, resource: Resource, name: str, status: Dict) -> None:
        """As the agent or the kubelet."""
        body = {"metadata": {"name": name}, "status": status}
        await self.client.apply(
            resource, body, self.namespace, manager=names.AGENT_MANAGER, subresource="status", into=dict
        )

    async def source(self) -> str:
        """A pod and its GpuInstance on node n1; the pod's uid."""
        container = {"name": "app", "image": "localhost/chat:1", "env": [{"name": "KEY", "value": "v"}]}
        meta = {"name": "chat-0", "annotations": {names.CONTAINERS: "app"}, "labels": {"app": "chat"}}
        spec: Dict = {"containers": [container], "nodeName": "n1", "runtimeClassName": "kybernate"}
        pod = await self.client.create(PODS, {"metadata": meta, "spec": spec}, self.namespace, into=dict)
        uid = str(pod["metadata"]["uid"])
        spec = {
            "nodeName": "n1", "pod": "chat-0", "podUID": uid,
            "policy": {"container": "app", "ports": [8080], "suspendAfter": "60s", "keepAwake": True},
        }  # fmt: skip
        await self.client.create(
            GPU_INSTANCES, {"metadata": {"name": "chat-0"}, "spec": spec}, self.namespace, into=dict
        )
        return uid

    async def ready(self, **spec: Any) -> None:
        """A GpuCheckpoint `warm` that the agent has carried out."""
        body = {"metadata": {"name": "warm"}, "spec": {"source": {"instance": "chat-0"}, **spec}}
        await self.client.create(GPU_CHECKPOINTS, body, self.namespace, into=dict)
        await self.live("checkpoint", "warm", None)
        status = {"phase": "Ready", "node": "n1", "manifest": "checkpoint-x@1", "observedGeneration": 1}
        await self.say(GPU_CHECKPOINTS, "warm", status)

    async def job(self, name: str, pod: str, checkpoint: str = "warm") -> None:
        body = {"metadata": {"name": name}, "spec": {"checkpoint": checkpoint, "podName": pod}}
        await self.client.create(GPU_RESTORE_JOBS, body, self.namespace, into=dict)


@pytest.fixture(scope="module")
def installed(apiserver: ApiServerBed) -> ApiServerBed:
    apiserver.reset()
    asyncio.run(install(apiserver))
    return apiserver


@pytest_asyncio.fixture
async def stage(installed: ApiServerBed) -> AsyncIterator[Stage]:
    apiserver = installed
    namespace = apiserver.create_namespace(f"checkpoints-{next(_numbers)}")
    credentials = apiserver.credentials(apiserver.server)
    async with Mortal(credentials, program="test") as client, Recorder(client, "test") as recorder:
        await client.apply(NODES, {"metadata": {"name": "n1"}, "spec": {}}, manager="test", into=dict)
        yield Stage(client, recorder, namespace)


async def test_a_checkpoint_comes_to_its_node_whenever_the_controller_dies(stage: Stage) -> None:
    uid = await stage.source()
    for writes in range(WRITES):
        name = f"warm-{writes}"
        body = {"metadata": {"name": name}, "spec": {"source": {"pod": "chat-0"}}}
        await stage.client.create(GPU_CHECKPOINTS, body, stage.namespace, into=dict)
        await stage.live("checkpoint", name, writes)
        await stage.live("checkpoint", name, None)
        made = await stage.get(GPU_CHECKPOINTS, name)
        assert made["metadata"]["finalizers"] == [names.STATE_FINALIZER]
        assert made["metadata"]["annotations"][names.SOURCE_POD] == uid
        assert (made["status"]["phase"], made["status"]["node"]) == ("Pending", "n1")
        checkpoint = await stage.client.get(GPU_CHECKPOINTS, GpuCheckpoint, name, stage.namespace)
        template = await stage.get(POD_TEMPLATES, template_name(checkpoint))
        assert template["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
        assert template["template"]["metadata"]["labels"] == {"app": "chat"}
        assert template["template"]["spec"]["containers"][0]["env"] == [{"name": "KEY", "value": "v"}]
        assert "nodeName" not in template["template"]["spec"]
        assert "KEY" not in str(made)  # the checkpoint itself shows nothing of it


async def test_a_job_makes_one_pod_whenever_the_controller_dies(stage: Stage) -> None:
    await stage.source()
    await stage.ready()
    for writes in range(WRITES):
        pod = f"again-{writes}"
        await stage.job(pod, pod)
        await stage.live("job", pod, writes)
        await stage.live("job", pod, None)
        assert await stage.phase(GPU_RESTORE_JOBS, pod) == "Placing"
        made, instance = await stage.get(PODS, pod), await stage.get(GPU_INSTANCES, pod)
        assert "ownerReferences" not in made["metadata"]
        spec = instance["spec"]
        assert (spec["podUID"], spec["restoreFrom"], spec["nodeName"]) == (
            made["metadata"]["uid"], "checkpoint-x@1", "n1",
        )  # fmt: skip
        assert spec["policy"]["onStateLost"] == "Hold"
        assert spec["policy"]["suspendAfter"] == "1m"
        assert not spec["policy"].get("keepAwake")
        assert instance["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
        woken = {"podUID": spec["podUID"], "state": "Running", "lastWake": {"seconds": 0.2, "from": "NVME"}}
        await stage.say(GPU_INSTANCES, pod, woken)
        await stage.live("job", pod, None)
        status = (await stage.get(GPU_RESTORE_JOBS, pod))["status"]
        assert (status["phase"], status["pod"], status["seconds"]["restoring"]) == ("Succeeded", pod, 0.2)
        assert (await stage.get(PODS, pod))["metadata"]["uid"] == spec["podUID"]


async def test_a_refused_restore_takes_its_own_pod_away_and_no_other(stage: Stage) -> None:
    source = await stage.source()
    await stage.ready()
    await stage.job("fails", "again")
    await stage.live("job", "fails", None)
    lost = [{"type": "StateLost", "status": "True", "reason": "MountDiffers", "message": "other mounts"}]
    await stage.say(GPU_INSTANCES, "again", {"conditions": lost})
    await stage.live("job", "fails", None)
    status = (await stage.get(GPU_RESTORE_JOBS, "fails"))["status"]
    assert (status["phase"], status["message"]) == ("Failed", "other mounts")
    assert {c["type"]: c["status"] for c in status["conditions"]} == {"Complete": "False", "Failed": "True"}
    assert await gone(stage, "again")
    await stage.job("taken", "chat-0")
    await stage.live("job", "taken", None)
    status = (await stage.get(GPU_RESTORE_JOBS, "taken"))["status"]
    assert status["phase"] == "Failed"
    assert "chat-0 exists already" in status["message"]
    pod = await stage.get(PODS, "chat-0")
    assert pod["metadata"]["uid"] == source
    assert "deletionTimestamp" not in pod["metadata"]


async def gone(stage: Stage, pod: str) -> bool:
    """Or on its way: no kubelet is there to end it."""
    try:
        return "deletionTimestamp" in (await stage.get(PODS, pod))["metadata"]
    except ApiNotFoundError:
        return True


async def test_a_job_waits_for_its_checkpoint(stage: Stage) -> None:
    await stage.source()
    body = {"metadata": {"name": "warm"}, "spec": {"source": {"instance": "chat-0"}}}
    await stage.client.create(GPU_CHECKPOINTS, body, stage.namespace, into=dict)
    await stage.job("early", "again")
    await stage.live("job", "early", None)
    status = (await stage.get(GPU_RESTORE_JOBS, "early"))["status"]
    assert (status["phase"], status["message"]) == ("Pending", "waits until GpuCheckpoint warm is Ready")
    await stage.live("checkpoint", "warm", None)
    await stage.say(GPU_CHECKPOINTS, "warm", {"phase": "Failed", "node": "n1"})
    await stage.live("job", "early", None)
    assert await stage.phase(GPU_RESTORE_JOBS, "early") == "Failed"


async def test_the_source_ends_once_and_only_the_one_that_was_copied(stage: Stage) -> None:
    await stage.source()
    await stage.ready(leaveRunning=False)
    await stage.live("checkpoint", "warm", 0)  # the pod's deletion is its first write
    assert await gone(stage, "chat-0")
    await stage.client.delete(PODS, "chat-0", stage.namespace, grace_seconds=0)
    spec = {"containers": [{"name": "app", "image": "localhost/chat:1"}]}
    await stage.client.create(PODS, {"metadata": {"name": "chat-0"}, "spec": spec}, stage.namespace, into=dict)
    await stage.live("checkpoint", "warm", None)
    assert not await gone(stage, "chat-0")
    status = (await stage.get(GPU_CHECKPOINTS, "warm"))["status"]
    assert status["phase"] == "Ready"
    assert [c["status"] for c in status["conditions"] if c["type"] == "SourceEnded"] == ["True"]


@pytest.mark.parametrize("why", ["no longer exists", "is out of service"])
async def test_no_agent_will_ever_answer(stage: Stage, why: str) -> None:
    """What is restored from there fails, and its checkpoint can go."""
    await stage.source()
    await stage.ready()
    await stage.job("placed", "again")
    await stage.live("job", "placed", None)
    assert await stage.phase(GPU_RESTORE_JOBS, "placed") == "Placing"
    await stage.client.delete(GPU_CHECKPOINTS, "warm", stage.namespace)
    await stage.live("checkpoint", "warm", None)
    assert (await stage.get(GPU_CHECKPOINTS, "warm"))["metadata"]["finalizers"]  # its agent may answer
    if why == "is out of service":
        taint = {"key": "node.kubernetes.io/out-of-service", "value": "off", "effect": "NoExecute"}
        await stage.client.apply(
            NODES, {"metadata": {"name": "n1"}, "spec": {"taints": [taint]}}, manager="test", into=dict
        )
    else:
        await stage.client.delete(NODES, "n1")
    await stage.live("job", "placed", None)
    status = (await stage.get(GPU_RESTORE_JOBS, "placed"))["status"]
    assert (status["phase"], status["message"]) == ("Failed", f"the copy lies on node n1, which {why}")
    assert await gone(stage, "again")
    await stage.live("checkpoint", "warm", None)
    with pytest.raises(ApiNotFoundError):
        await stage.get(GPU_CHECKPOINTS, "warm")
    await stage.ready()
    await stage.job("late", "another")
    await stage.live("job", "late", None)
    assert await stage.phase(GPU_RESTORE_JOBS, "late") == "Failed"
    assert await gone(stage, "another")


async def test_who_reads_or_edits_a_namespace_does_not_see_the_templates(stage: Stage) -> None:
    """They hold the values of a pod's environment."""
    roles = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", namespaced=False)
    for name in ("view", "edit", "admin"):
        role = await stage.client.get(roles, dict[str, Any], f"system:aggregate-to-{name}")
        named = {each for rule in role["rules"] for each in rule["resources"]}
        assert "pods" in named or name == "admin"
        assert not named & {"podtemplates", "*"}
