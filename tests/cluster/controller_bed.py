"""A stage for the controller: a real API server, and the test plays scheduler, kubelets and agents by what they write.

The players do what the real ones do to the objects that the controller reads, in the same order, and nothing else:

    scheduler   binds a pod to a node that its affinity allows, that is there and takes pods; says when there is none
    kubelet     a bound pod runs and is ready; one that is ending is removed when its agent has spoken
    agent       says where an instance's state is; keeps it at an eviction, gives it up at a deletion; takes the
                finalizer away. It speaks only for pods that a GpuInstance names

Which instance sleeps in which tier is the test's word (`tiers`). A node in `silent` says nothing any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml
from kybernate_controller.controller import Controller

from kybernate.api import crd
from kybernate.kube.client import Client
from kybernate.kube.connection import Request
from kybernate.kube.credentials import load_credentials
from kybernate.kube.errors import ApiNotFoundError, ConflictError, KindMissingError
from kybernate.kube.events import Recorder
from kybernate.kube.resource import CRDS, EVENTS, GPU_INSTANCES, GPU_NODES, GPU_WORKLOADS, NODES, PODS, Resource
from kybernate.lab.cluster.apiserver import ApiServerBed

LIMIT_SECONDS = 60.0
"""What is waited for takes well below a second on an idle machine."""
RUNTIME_CLASSES = Resource("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", namespaced=False)
RBAC = Path(__file__).parents[2] / "controller" / "manifests" / "rbac.yaml"
SYSTEM = "kybernate-system"
READY = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
_numbers = itertools.count(1)

CONTAINER = {
    "name": "server",
    "image": "localhost/chat:1",
    "ports": [{"containerPort": 8080}],
    "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
}


async def install(bed: ApiServerBed) -> None:
    """What deploy/ brings to a cluster: the CRDs, served, and the RuntimeClass."""
    async with bed.client() as client:
        for resource in crd.KINDS:
            await client.apply(CRDS, crd.definition(resource), manager="test")
        runtime = {"metadata": {"name": "kybernate"}, "handler": "kybernate"}
        await client.apply(RUNTIME_CLASSES, runtime, manager="test")
        for kind in (GPU_WORKLOADS, GPU_INSTANCES, GPU_NODES):
            await until(functools.partial(_is_served, client, kind), f"{kind} is served")

    bed.create_namespace(SYSTEM)
    async with bed.client() as client:
        for body in yaml.safe_load_all(RBAC.read_text()):
            group, _, version = body["apiVersion"].rpartition("/")
            namespaced = "namespace" in body["metadata"]
            kind = Resource(group, version, f"{body['kind'].lower()}s", body["kind"], namespaced=namespaced)
            await client.apply(kind, body, manager="test", into=dict)


def controller_account(bed: ApiServerBed) -> Path:
    """A kubeconfig with the rights that the controller has in a cluster."""
    user = f"system:serviceaccount:{SYSTEM}:kybernate-controller"
    return bed.account(user, ["system:serviceaccounts", f"system:serviceaccounts:{SYSTEM}"])


async def _is_served(client: Client, kind: Resource) -> bool:
    try:
        await client.list(kind, dict[str, Any])
    except KindMissingError:
        return False
    return True


async def until(holds: Callable[[], Awaitable[Any]], what: str, limit_seconds: float = LIMIT_SECONDS) -> Any:
    """The first true answer of `holds`."""
    limit = time.monotonic() + limit_seconds
    while not (answer := await holds()):
        if time.monotonic() > limit:
            raise AssertionError(f"not in {limit_seconds:g} s: {what}")
        await asyncio.sleep(0.03)
    return answer


class Stage:
    """One namespace, its nodes, and the players."""

    def __init__(self, bed: ApiServerBed, client: Client, namespace: str) -> None:
        self.bed = bed
        self.client = client
        self.namespace = namespace
        self.nodes: set[str] = set()
        self.tiers: dict[str, str] = {}
        self.silent: set[str] = set()
        self.broken: set[str] = set()
        """Instances whose container does not start."""
        self.uids: dict[str, list[str]] = {}
        """By pod name, the uids of all pods that ever ran, in order."""

    # What a person does.

    async def node(self, name: str) -> str:
        """A new node, ready; its name is made unique."""
        name = f"{name}-{self.namespace}"
        await self.client.create(NODES, {"metadata": {"name": name}}, into=dict)
        await self.say_node(name, ready=True)
        self.nodes.add(name)
        return name

    async def say_node(self, name: str, *, ready: bool) -> None:
        condition = {"type": "Ready", "status": "True" if ready else "Unknown", "reason": "Test"}
        body = {"metadata": {"name": name}, "status": {"conditions": [condition]}}
        await self.client.apply(NODES, body, manager="kubelet", subresource="status", into=dict)

    async def say_gpu_node(self, name: str, *, ready: bool = True, free: str = "50Gi") -> None:
        """As its agent does."""
        condition = _condition("Ready", str(ready), "AgentReady" if ready else "CannotPark")
        status = {"conditions": [condition], "tiers": {"NVME": {"free": free}}}
        meta = {"metadata": {"name": name}}
        await self.client.apply(GPU_NODES, meta, manager="agent", into=dict)
        await self.client.apply(GPU_NODES, meta | {"status": status}, manager="agent", subresource="status", into=dict)

    async def workload(self, name: str, **spec: Any) -> None:
        """Apply a GpuWorkload; `image` and `labels` go into its template."""
        image, labels = spec.pop("image", CONTAINER["image"]), spec.pop("labels", {})
        containers = spec.pop("pod_containers", [CONTAINER | {"image": image}])
        template = {"metadata": {"labels": {"app": name} | labels}, "spec": {"containers": containers}}
        body = {"metadata": {"name": name}, "spec": {"template": template} | spec}
        await self.client.apply(GPU_WORKLOADS, body, self.namespace, manager="person", into=dict)

    async def scale(self, name: str, replicas: int) -> None:
        """As kubectl scale."""
        patch = {"spec": {"replicas": replicas}}
        await self.client.merge_patch(GPU_WORKLOADS, dict, name, patch, self.namespace, subresource="scale")

    async def evict(self, pod: str) -> None:
        """As the eviction API: the condition first, then the deletion."""
        path = PODS.path(self.namespace, pod, "eviction")
        body = f'{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}"}}}}'.encode()
        await self.client.request(Request("POST", "evict", path, "pods/eviction", body=body))

    # What is looked at.

    async def pods(self) -> dict[str, dict[str, Any]]:
        return await self._all(PODS)

    async def instances(self) -> dict[str, dict[str, Any]]:
        return await self._all(GPU_INSTANCES)

    async def status(self, name: str) -> dict[str, Any]:
        found = await self.client.get(GPU_WORKLOADS, dict[str, Any], name, self.namespace)
        status: dict[str, Any] = found.get("status", {})
        return status | {"generation": found["metadata"]["generation"]}

    async def condition(self, name: str, kind: str) -> dict[str, Any]:
        conditions = (await self.status(name)).get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == kind), {})

    async def events(self, reason: str) -> list[str]:
        found = await self.client.list(EVENTS, dict[str, Any], self.namespace)
        return [event["message"] for event in found.items if event["reason"] == reason]

    async def until_ready(self, name: str, replicas: int, **counts: int) -> dict[str, Any]:
        """The status, once it is of the present spec, all instances answer, and the counts are these."""

        async def ready() -> dict[str, Any] | None:
            status = await self.status(name)
            if status.get("observedGeneration") != status["generation"] or status.get("replicas") != replicas:
                return None
            conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
            if conditions.get("Ready") != "True" or conditions.get("Progressing") != "False":
                return None
            return status if all(status.get(key) == value for key, value in counts.items()) else None

        try:
            found: dict[str, Any] = await until(ready, f"{name} has {replicas} ready instances, {counts}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {await self.status(name)}") from None
        return found

    async def _all(self, resource: Resource) -> dict[str, dict[str, Any]]:
        found = await self.client.list(resource, dict[str, Any], self.namespace)
        return {item["metadata"]["name"]: item for item in found.items}

    # The players.

    async def play(self) -> None:
        """Until cancelled."""
        while True:
            with contextlib.suppress(ApiNotFoundError, ConflictError):  # the next look knows better
                pods, instances = await self.pods(), await self.instances()
                nodes = {n["metadata"]["name"]: n for n in (await self.client.list(NODES, dict[str, Any])).items}
                for pod in pods.values():
                    await self._schedule(pod, nodes)
                for pod in pods.values():
                    await self._run(pod, instances)
                for instance in instances.values():
                    await self._report(instance, pods)
            await asyncio.sleep(0.03)

    async def _schedule(self, pod: dict[str, Any], nodes: dict[str, Any]) -> None:
        metadata, spec = pod["metadata"], pod["spec"]
        if spec.get("nodeName") or metadata.get("deletionTimestamp"):
            return
        required = spec.get("affinity", {}).get("nodeAffinity", {})
        terms = required.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [{}])
        for name in sorted(self.nodes - self.silent):
            allowed = any(all(_names(field, name) for field in term.get("matchFields", ())) for term in terms)
            if name in nodes and not nodes[name]["spec"].get("unschedulable") and allowed:
                body = {"metadata": {"name": metadata["name"]}, "target": {"kind": "Node", "name": name}}
                await self.client.create(
                    Resource("", "v1", f"pods/{metadata['name']}/binding", "Binding"), body, self.namespace, into=dict
                )
                return
        conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
        if conditions.get("PodScheduled") != "False":
            condition = _condition("PodScheduled", "False", "Unschedulable", "0 nodes are available")
            await self._say_pod(metadata, {"conditions": [condition]}, "scheduler")

    async def _run(self, pod: dict[str, Any], instances: dict[str, Any]) -> None:
        metadata, node = pod["metadata"], pod["spec"].get("nodeName", "")
        if not node or node in self.silent or node not in self.nodes:
            return
        if metadata.get("deletionTimestamp"):
            disrupted = any(
                c["type"] == "DisruptionTarget" and c["status"] == "True" for c in pod["status"].get("conditions", ())
            )
            await self._ended(instances.get(metadata["name"]), metadata, disrupted=disrupted)
            await self.client.delete(PODS, metadata["name"], self.namespace, uid=metadata["uid"], grace_seconds=0)
            return
        if pod["status"].get("phase") == "Pending" and metadata["name"] not in self.broken:
            conditions = [
                _condition(kind, "True") for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ]
            await self._say_pod(metadata, {"phase": "Running", "conditions": conditions}, "kubelet")
            self.uids.setdefault(metadata["name"], []).append(metadata["uid"])
        elif pod["status"].get("phase") == "Pending" and not pod["status"].get("containerStatuses"):
            waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
            container = {"name": "server", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
            conditions = [_condition("PodScheduled", "True"), _condition("ContainersReady", "False")]
            statuses = [container | {"state": waiting}]
            await self._say_pod(metadata, {"conditions": conditions, "containerStatuses": statuses}, "kubelet")

    async def _ended(self, instance: dict[str, Any] | None, metadata: dict[str, Any], *, disrupted: bool) -> None:
        """What the agent says when an instance's pod has ended."""
        if instance is None or instance["spec"].get("podUID") != metadata["uid"]:
            return
        name, status = metadata["name"], instance.get("status", {})
        if disrupted and status.get("tier"):
            self.tiers[name] = "NVME" if status["tier"] == "-" else status["tier"]
            await self._say_instance(instance, {"state": "Parked", "tier": self.tiers[name], "podUID": metadata["uid"]})
        else:
            self.tiers.pop(name, None)
            await self._say_instance(instance, {"state": "Waiting", "tier": ""})

    async def _report(self, instance: dict[str, Any], pods: dict[str, Any]) -> None:
        metadata, spec = instance["metadata"], instance["spec"]
        node = spec.get("nodeName", "")
        if node not in self.nodes or node in self.silent:
            return
        if metadata.get("deletionTimestamp"):
            self.tiers.pop(metadata["name"], None)
            patch = {"metadata": {"uid": metadata["uid"], "finalizers": None}}
            await self.client.merge_patch(GPU_INSTANCES, dict, metadata["name"], patch, self.namespace)
            return
        pod = pods.get(metadata["name"])
        if pod is not None and pod["metadata"].get("deletionTimestamp"):
            return
        runs = pod is not None and pod["status"].get("phase") == "Running" and pod["spec"].get("nodeName") == node
        runs = runs and pod is not None and pod["metadata"]["uid"] == spec.get("podUID")
        tier = self.tiers.get(metadata["name"], "-" if runs else "")
        state = {"-": "Running", "RAM": "Suspended", "NVME": "Parked", "": "Waiting"}[tier]
        await self._say_instance(
            instance, {"state": state, "tier": tier} | ({"podUID": spec["podUID"]} if runs else {})
        )

    async def _say_instance(self, instance: dict[str, Any], says: dict[str, Any]) -> None:
        metadata, old = instance["metadata"], instance.get("status", {})
        says |= {"nodeName": instance["spec"]["nodeName"], "observedGeneration": metadata["generation"]}
        if any(old.get(key, "") != value for key, value in says.items()):
            body = {"metadata": {"name": metadata["name"], "uid": metadata["uid"]}, "status": says}
            await self.client.apply(
                GPU_INSTANCES, body, self.namespace, manager="agent", subresource="status", into=dict
            )

    async def _say_pod(self, metadata: dict[str, Any], status: dict[str, Any], manager: str) -> None:
        body = {"metadata": {"name": metadata["name"], "uid": metadata["uid"]}, "status": status}
        await self.client.apply(PODS, body, self.namespace, manager=manager, subresource="status", into=dict)


def _names(field: dict[str, Any], node: str) -> bool:
    """Whether a required field of a node holds of it."""
    assert field["key"] == "metadata.name"
    return bool((node in field["values"]) == (field["operator"] == "In"))


def _condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    found = {"type": kind, "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return found | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})


@contextlib.asynccontextmanager
async def open_stage(bed: ApiServerBed) -> AsyncIterator[Stage]:
    """A namespace of its own, with the players at work; what the stage made is taken away with `bed.reset`."""
    bed.reset()
    await install(bed)
    namespace = bed.create_namespace(f"controller-{next(_numbers)}")
    async with bed.client() as client:
        stage = Stage(bed, client, namespace)
        players = asyncio.create_task(stage.play())
        try:
            yield stage
        finally:
            players.cancel()
            await asyncio.wait({players})
            if not players.cancelled() and (failure := players.exception()):
                raise failure


@contextlib.asynccontextmanager
async def open_controller(
    bed: ApiServerBed, kubeconfig: Path | None = None
) -> AsyncIterator[tuple[Controller, Client]]:
    """A controller in this process, which alone acts, with the rights that it has in a cluster."""
    credentials = await load_credentials(kubeconfig or controller_account(bed))
    async with Client(credentials, program="kybernate-controller") as client, Recorder(client, "test") as recorder:
        controller = Controller(client, recorder)
        async with controller.opened():
            leading = asyncio.create_task(controller.lead())
            try:
                yield controller, client
            finally:
                leading.cancel()
                await asyncio.wait({leading})
                if not leading.cancelled() and (failure := leading.exception()):
                    raise failure
