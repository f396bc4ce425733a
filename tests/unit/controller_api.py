"""An API server for the controller's simulation, in memory and without time, and controllers that talk to it.

Real are the Informer, the plan, the doing. Played are the API server, as far as the controller uses it, and the watch,
which tells what has happened up to where it is let. A client may be killed right after a write (`crash_after`).

Honest about what it lacks: managed fields (an apply replaces the spec), validation, time.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Protocol

from kybernate_controller import placement, slim
from kybernate_controller.caches import BY_WORKLOAD, REFUSES, Caches
from kybernate_controller.objects import GpuNode, Instance, Node, Pod
from kybernate_controller.reconcile import Reconciler

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.api.objects import builtins, decode, encode
from kybernate.kube.cache import Informer, Key
from kybernate.kube.client import Listed
from kybernate.kube.connection import Request
from kybernate.kube.errors import AlreadyExistsError, ApiInvalidError, ApiNotFoundError, ConflictError
from kybernate.kube.resource import GPU_INSTANCES, GPU_NODES, GPU_WORKLOADS, NODES, PODS, Resource
from kybernate.kube.watch import Applied, Deleted, Event, Restarted

NAMESPACE = "default"
WORKLOAD = "chat"
Dict = dict[str, Any]
SLIM: dict[Resource, Callable[[Any], Any]] = {
    PODS: slim.pod,
    NODES: slim.node,
    GPU_NODES: slim.gpu_node,
    GPU_INSTANCES: slim.instance,
    GPU_WORKLOADS: slim.workload,
}


class Crash(BaseException):
    """The controller is killed: its write was done, its memory is gone."""


def fails(kind: type[Any], problem: str) -> Exception:
    error: Exception = kind(call="simulated", problem=problem)
    return error


class Api:
    """Objects by plural and name, and all their changes in order."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Dict]] = {r.plural: {} for r in SLIM}
        self.log: list[tuple[int, str, str, Dict]] = []
        self.version = 0
        self.writes: Counter[str] = Counter()
        self._uids = itertools.count(1)

    def put(self, plural: str, body: Dict) -> Dict:
        """A new version of an object, or a new object."""
        self.version += 1
        metadata = body["metadata"]
        metadata.setdefault("uid", f"uid-{next(self._uids)}")
        metadata["resourceVersion"] = str(self.version)
        if plural not in (NODES.plural, GPU_NODES.plural):
            metadata["namespace"] = NAMESPACE
        old = self.objects[plural].get(metadata["name"])
        if plural in (GPU_INSTANCES.plural, GPU_WORKLOADS.plural):
            changed = old is None or old.get("spec") != body.get("spec")
            metadata["generation"] = metadata.get("generation", 0) + changed
        self.objects[plural][metadata["name"]] = body
        self.log.append((self.version, "put", plural, copy.deepcopy(body)))
        return body

    def remove(self, plural: str, name: str) -> None:
        body = self.objects[plural].pop(name)
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.log.append((self.version, "remove", plural, copy.deepcopy(body)))

    def change(self, plural: str, name: str, **parts: Dict) -> None:
        """Set fields of spec, status or metadata."""
        body = copy.deepcopy(self.objects[plural][name])
        for part, fields in parts.items():
            body.setdefault(part, {}).update(fields)
        if body != self.objects[plural][name]:
            self.put(plural, body)

    def ask_to_go(self, plural: str, name: str) -> None:
        """A deletion as the API server does it."""
        body = self.objects[plural][name]
        gone_at_once = not body["metadata"].get("finalizers")
        if plural == PODS.plural:
            terminal = body.get("status", {}).get("phase") in ("Failed", "Succeeded")
            gone_at_once = not body["spec"].get("nodeName") or terminal
        if gone_at_once:
            self.remove(plural, name)
        elif "deletionTimestamp" not in body["metadata"]:
            self.change(plural, name, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})


class Judge(Protocol):
    """Looks at each write of a controller before it is done, and hears of pods that went at once."""

    def about_to(self, verb: str, plural: str, body: Dict) -> None: ...
    def vanished(self, name: str, pod: Dict) -> None: ...


class FakeClient:
    """The methods of kybernate.kube.Client that the controller calls; raises Crash after so many writes."""

    def __init__(self, api: Api, judge: Judge) -> None:
        self.api = api
        self.judge = judge
        self.crash_after: int | None = None
        self.sent: Counter[str] = Counter()

    async def get(self, resource: Resource, kind: type[Any], name: str, namespace: str | None = None) -> Any:
        return decode(encode(self._existing(resource, name)), kind)

    async def list(
        self,
        resource: Resource,
        kind: type[Any],
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> Listed[Any]:
        found = list(self.api.objects[resource.plural].values())
        if label_selector:
            label, _, value = label_selector.partition("=")
            found = [o for o in found if o["metadata"].get("labels", {}).get(label) == value]
        if field_selector:
            found = [o for o in found if o["spec"].get("workload", "") == field_selector.partition("=")[2]]
        return Listed([decode(encode(o), kind) for o in found], str(self.api.version))

    async def create(self, resource: Resource, object: Any, namespace: str | None = None, *, into: type[Any]) -> Any:
        body = copy.deepcopy(builtins(object))
        name = body["metadata"]["name"]
        if name in self.api.objects[resource.plural]:
            raise fails(AlreadyExistsError, f"{name} exists")
        self.judge.about_to("create", resource.plural, body)
        if resource is PODS:
            if image_of(body) == "refused":
                raise fails(ApiInvalidError, "the image is refused")
            body["status"] = {"phase": "Pending", "qosClass": "Burstable"}
        return self._answer("create", self.api.put(resource.plural, body), into)

    async def apply(
        self,
        resource: Resource,
        object: Any,
        namespace: str | None = None,
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
        into: type[Any],
    ) -> Any:
        given = copy.deepcopy(builtins(object))
        name = given["metadata"]["name"]
        old = self.api.objects[resource.plural].get(name)
        if old is None:
            if subresource or given["metadata"].get("uid"):
                raise fails(ApiNotFoundError if subresource else ConflictError, f"{name} is gone")
            self.judge.about_to("create", resource.plural, given)
            return self._answer("apply", self.api.put(resource.plural, given), into)
        self._matches(old, given["metadata"])
        body = copy.deepcopy(old)
        if subresource == "status" and resource is PODS:
            kept = [c for c in body["status"].get("conditions", []) if c["type"] != _first(given)["type"]]
            body["status"]["conditions"] = [*kept, _first(given)]
        elif subresource == "status":
            body["status"] = given["status"]
        elif subresource == "resize":
            for container in given["spec"]["containers"]:
                mine = next(c for c in body["spec"]["containers"] if c["name"] == container["name"])
                mine["resources"]["requests"] |= container["resources"]["requests"]
        else:
            self.judge.about_to("apply", resource.plural, given)
            body["spec"] = given["spec"]
            body["metadata"] |= {key: given["metadata"][key] for key in ("labels", "finalizers", "ownerReferences")}
            body["metadata"]["annotations"] = given["metadata"].get("annotations", {})
        if body != old:
            self.api.put(resource.plural, body)
        return self._answer(f"apply {subresource or ''}".rstrip(), self.api.objects[resource.plural][name], into)

    async def merge_patch(
        self,
        resource: Resource,
        kind: type[Any],
        name: str,
        patch: Mapping[str, Any],
        namespace: str | None = None,
        *,
        manager: str | None = None,
    ) -> Any:
        body = copy.deepcopy(self._existing(resource, name))
        self._matches(body, patch["metadata"])
        rest = {key: value for key, value in patch["metadata"].items() if key not in ("uid", "resourceVersion")}
        body["metadata"] |= rest
        if body["metadata"].get("finalizers") is None:
            body["metadata"].pop("finalizers", None)
        self.api.put(resource.plural, body)
        if body["metadata"].get("deletionTimestamp") and not body["metadata"].get("finalizers"):
            self.api.remove(resource.plural, name)
        return self._answer("patch", body, kind)

    async def delete(
        self, resource: Resource, name: str, namespace: str | None = None, *, uid: str | None = None
    ) -> None:
        body = self._existing(resource, name)
        if uid and body["metadata"]["uid"] != uid:
            raise fails(ConflictError, f"{name} has another uid")
        self.judge.about_to("delete", resource.plural, body)
        self.api.ask_to_go(resource.plural, name)
        if resource is PODS and name not in self.api.objects[resource.plural]:
            self.judge.vanished(name, body)
        self._answer("delete", None, None)

    async def request(self, call: Request) -> bytes:
        """The dry run of a template."""
        body = decode(call.body or b"{}", Dict)
        if image_of(body) == "refused":
            raise fails(ApiInvalidError, "the image is refused")
        self.sent["try"] += 1
        return b"{}"

    def _existing(self, resource: Resource, name: str) -> Dict:
        try:
            return self.api.objects[resource.plural][name]
        except KeyError:
            raise fails(ApiNotFoundError, f"no {name}") from None

    @staticmethod
    def _matches(old: Dict, given: Mapping[str, Any]) -> None:
        for key in ("uid", "resourceVersion"):
            if given.get(key) and given[key] != old["metadata"][key]:
                raise fails(ConflictError, f"another {key}")

    def _answer(self, verb: str, body: Dict | None, kind: type[Any] | None) -> Any:
        self.sent[verb] += 1
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                raise Crash
        return None if body is None or kind is None else decode(encode(body), kind)


class FakeWatch:
    """What an Informer follows: the API server's changes up to where `reach` says."""

    def __init__(self, api: Api, resource: Resource, kind: type[Any]) -> None:
        self.api, self.resource, self.kind = api, resource, kind
        self.at = api.version
        self.version = str(self.at)
        self.problem = None
        self._told = asyncio.Event()
        self._start = [self._read(body) for body in api.objects[resource.plural].values() if self._selected(body)]

    async def events(self) -> AsyncGenerator[Event[Any], None]:
        yield Restarted(self._start)
        while True:
            await self._told.wait()
            self._told.clear()
            while int(self.version) < self.at:
                version, what, plural, body = self.api.log[int(self.version)]  # each version is one change
                self.version = str(version)
                if plural == self.resource.plural and self._selected(body):
                    yield Deleted(self._read(body)) if what == "remove" else Applied(self._read(body))

    def reach(self, version: int) -> None:
        self.at = max(self.at, version)
        self._told.set()

    def _selected(self, body: Dict) -> bool:
        return self.resource is not PODS or names.WORKLOAD in body["metadata"].get("labels", {})

    def _read(self, body: Dict) -> Any:
        return SLIM[self.resource](decode(encode(body), self.kind))


class Brain:
    """One life of one controller: caches of its own, and no memory from before."""

    def __init__(self, api: Api, judge: Judge) -> None:
        self.client = FakeClient(api, judge)
        self.watches: list[FakeWatch] = []
        self.tasks: list[asyncio.Task[None]] = []
        workloads: Informer[GpuWorkloadObject] = self._informer(api, GPU_WORKLOADS, GpuWorkloadObject)
        instances: Informer[Instance] = self._informer(api, GPU_INSTANCES, Instance)
        pods: Informer[Pod] = self._informer(api, PODS, Pod)
        nodes: Informer[Node] = self._informer(api, NODES, Node)
        self.told: list[str] = []
        gpu_nodes: Informer[GpuNode] = self._informer(api, GPU_NODES, GpuNode)
        caches = Caches(workloads, instances, pods, nodes, gpu_nodes)
        self.clock = 0.0
        self.reconciler = Reconciler(
            self.client,  # type: ignore[arg-type]
            caches,
            lambda workload, event: self.told.append(f"{event.reason}: {event.message}"),
            clock=lambda: self.clock,
        )

    def _informer(self, api: Api, resource: Resource, kind: type[Any]) -> Informer[Any]:
        indexers: dict[Resource, dict[str, Callable[[Any], Any]]] = {
            GPU_INSTANCES: {BY_WORKLOAD: lambda i: (Key(i.metadata.namespace, i.spec.workload),)},
            PODS: {BY_WORKLOAD: lambda p: (Key(p.metadata.namespace, p.metadata.labels[names.WORKLOAD]),)},
            GPU_NODES: {REFUSES: placement.refuses},
        }
        informer: Informer[Any] = Informer(
            None,  # type: ignore[arg-type]
            resource,
            kind,
            indexers=indexers.get(resource),
            transform=SLIM[resource],
        )
        watch = FakeWatch(api, resource, kind)
        informer.watch = watch  # type: ignore[assignment]
        self.watches.append(watch)
        self.tasks.append(asyncio.create_task(informer.run()))
        return informer

    async def look(self, name: str = WORKLOAD) -> float | None:
        await settle()
        self.clock += 100.0  # what was refused is tried again
        return await self.reconciler(Key(NAMESPACE, name))

    async def see(self, version: int) -> None:
        for watch in self.watches:
            watch.reach(version)
        await settle()

    async def die(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


async def settle() -> None:
    """Let informers take in what they were told."""
    for _ in range(5):
        await asyncio.sleep(0)


def image_of(body: Dict) -> str:
    image: str = body["spec"]["containers"][0]["image"]
    return image


def _first(given: Dict) -> Dict:
    first: Dict = given["status"]["conditions"][0]
    return first
