"""A cluster for the controller's simulation, in one process and without time: an API server's semantics as far as the
controller uses them, caches that lag, and players (scheduler, kubelets, agents) that act when the dice say so.

Real are the Informer, the plan, the doing. Played is what they talk to. What is truly on the nodes (`truth`) is kept
apart from what the API server was told, so that a state that is left behind or begun anew unasked is seen:
`wrongs` collects whatever must never happen.

Honest about what it lacks: managed fields (an apply replaces the spec), validation, time.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kybernate_controller.caches import BY_WORKLOAD, Caches
from kybernate_controller.objects import Instance, Node, Pod
from kybernate_controller.reconcile import Reconciler

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.api.objects import builtins, decode, encode
from kybernate.kube.cache import Informer, Key
from kybernate.kube.client import Listed
from kybernate.kube.connection import Request
from kybernate.kube.errors import AlreadyExistsError, ApiInvalidError, ApiNotFoundError, ConflictError
from kybernate.kube.resource import GPU_INSTANCES, GPU_WORKLOADS, NODES, PODS, Resource
from kybernate.kube.watch import Applied, Deleted, Event, Restarted

NAMESPACE = "default"
WORKLOAD = "chat"
Dict = dict[str, Any]


class Crash(BaseException):
    """The controller is killed: its write was done, its memory is gone."""


def fails(kind: type[Any], problem: str) -> Exception:
    error: Exception = kind(call="simulated", problem=problem)
    return error


class Api:
    """Objects by plural and name, and all their changes in order."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Dict]] = {r.plural: {} for r in (PODS, NODES, GPU_INSTANCES, GPU_WORKLOADS)}
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
        if plural != NODES.plural:
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


class FakeClient:
    """The methods of kybernate.kube.Client that the controller calls. `before` may raise Crash; `after` too."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.api = world.api
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
        self.world.about_to("create", resource.plural, body)
        if resource is PODS:
            if _image(body) == "refused":
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
            self.world.about_to("create", resource.plural, given)
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
            self.world.about_to("apply", resource.plural, given)
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
        self.world.about_to("delete", resource.plural, body)
        self.api.ask_to_go(resource.plural, name)
        self._answer("delete", None, None)

    async def request(self, call: Request) -> bytes:
        """The dry run of a template."""
        body = decode(call.body or b"{}", Dict)
        if _image(body) == "refused":
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
            for version, what, plural, body in self.api.log:
                if not int(self.version) < version <= self.at:
                    continue
                self.version = str(version)
                if plural == self.resource.plural and self._selected(body):
                    yield Deleted(self._read(body)) if what == "remove" else Applied(self._read(body))

    def reach(self, version: int) -> None:
        self.at = max(self.at, version)
        self._told.set()

    def _selected(self, body: Dict) -> bool:
        return self.resource is not PODS or names.WORKLOAD in body["metadata"].get("labels", {})

    def _read(self, body: Dict) -> Any:
        return decode(encode(body), self.kind)


class Brain:
    """One life of one controller: caches of its own, and no memory from before."""

    def __init__(self, world: World) -> None:
        self.client = FakeClient(world)
        self.watches: list[FakeWatch] = []
        self.tasks: list[asyncio.Task[None]] = []
        workloads: Informer[GpuWorkloadObject] = self._informer(world, GPU_WORKLOADS, GpuWorkloadObject)
        instances: Informer[Instance] = self._informer(world, GPU_INSTANCES, Instance)
        pods: Informer[Pod] = self._informer(world, PODS, Pod)
        nodes: Informer[Node] = self._informer(world, NODES, Node)
        self.told: list[str] = []
        caches = Caches(workloads, instances, pods, nodes)
        self.clock = 0.0
        self.reconciler = Reconciler(
            self.client,  # type: ignore[arg-type]
            caches,
            lambda workload, event: self.told.append(f"{event.reason}: {event.message}"),
            clock=lambda: self.clock,
        )

    def _informer(self, world: World, resource: Resource, kind: type[Any]) -> Informer[Any]:
        indexers = {
            GPU_INSTANCES: {BY_WORKLOAD: lambda i: (Key(i.metadata.namespace, i.spec.workload),)},
            PODS: {BY_WORKLOAD: lambda p: (Key(p.metadata.namespace, p.metadata.labels[names.WORKLOAD]),)},
        }
        informer: Informer[Any] = Informer(None, resource, kind, indexers=indexers.get(resource))  # type: ignore[arg-type]
        watch = FakeWatch(world.api, resource, kind)
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


@dataclass
class Held:
    """What is truly of an instance on a node. `uid`: of its GpuInstance."""

    uid: str
    pod_uid: str
    tier: str


@dataclass
class World:
    """Everything, and the dice."""

    seed: int
    api: Api = field(default_factory=Api)
    truth: dict[tuple[str, str], Held] = field(default_factory=dict)
    """By node and instance name."""
    wrongs: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    nodes: tuple[str, ...] = ("n1", "n2", "n3")

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        for name in self.nodes:
            self.add_node(name)

    @property
    def pods(self) -> dict[str, Dict]:
        return self.api.objects[PODS.plural]

    @property
    def instances(self) -> dict[str, Dict]:
        return self.api.objects[GPU_INSTANCES.plural]

    @property
    def workload(self) -> Dict:
        return self.api.objects[GPU_WORKLOADS.plural][WORKLOAD]

    def note(self, what: str) -> None:
        self.history.append(what)

    def wrong(self, what: str) -> None:
        self.note(f"WRONG {what}")
        self.wrongs.append(what)

    # What a person does.

    def add_node(self, name: str) -> None:
        ready = {"type": "Ready", "status": "True"}
        self.api.put(NODES.plural, {"metadata": {"name": name}, "spec": {}, "status": {"conditions": [ready]}})

    def make_workload(self, **spec: Any) -> None:
        container = {
            "name": "server",
            "image": spec.pop("image", "one"),
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
        }
        body = {"template": {"spec": {"containers": [container]}}} | spec
        self.api.put(GPU_WORKLOADS.plural, {"metadata": {"name": WORKLOAD}, "spec": body, "status": {}})

    def order(self, **spec: Any) -> None:
        if image := spec.pop("image", None):
            template = copy.deepcopy(self.workload["spec"]["template"])
            template["spec"]["containers"][0]["image"] = image
            spec["template"] = template
        self.api.change(GPU_WORKLOADS.plural, WORKLOAD, spec=spec)

    def remove_node(self, name: str) -> None:
        self.api.remove(NODES.plural, name)
        for key in [key for key in self.truth if key[0] == name]:
            del self.truth[key]
        for pod in [p for p in self.pods.values() if p["spec"].get("nodeName") == name]:
            self.api.remove(PODS.plural, pod["metadata"]["name"])

    def evict(self, name: str) -> None:
        pod = self.pods[name]
        kept = [c for c in pod["status"].get("conditions", []) if c["type"] != "DisruptionTarget"]
        disrupted = {"type": "DisruptionTarget", "status": "True"}
        self.api.change(PODS.plural, name, status={"conditions": [*kept, disrupted]})
        self.api.ask_to_go(PODS.plural, name)

    # The players; each step does one thing for one object, if there is anything to do.

    def schedule(self, name: str) -> None:
        pod = self.pods[name]
        if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return
        bound = pod["metadata"].get("annotations", {}).get(names.STATE_NODE)
        nodes = [n for n in self.api.objects[NODES.plural].values() if not n["spec"].get("unschedulable")]
        able = [n["metadata"]["name"] for n in nodes if bound in (None, n["metadata"]["name"])]
        if able:
            self.api.change(PODS.plural, name, spec={"nodeName": self.dice.choice(able)})
        else:
            unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            self.api.change(PODS.plural, name, status={"conditions": [unscheduled]})

    def run(self, name: str) -> None:
        """The kubelet, and the hook that asks the agent, which asks for the fence."""
        pod = self.pods[name]
        uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName")
        if not node or node not in self.api.objects[NODES.plural]:
            return
        if "deletionTimestamp" in pod["metadata"]:
            self._end(name, pod)
            return
        instance = self.instances.get(name)
        if pod["status"]["phase"] != "Pending" or instance is None:
            return
        if (instance["spec"].get("podUID"), instance["spec"].get("nodeName")) != (uid, node):
            return
        self._start(name, node, instance, uid)
        # The kubelet sets its own conditions, and leaves those of others.
        ready = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "ContainersReady", "Ready")]
        others = [c for c in pod["status"].get("conditions", []) if c["type"] in (names.SERVING, "DisruptionTarget")]
        self.api.change(PODS.plural, name, status={"phase": "Running", "conditions": ready + others})

    def _start(self, name: str, node: str, instance: Dict, pod_uid: str) -> None:
        uid = instance["metadata"]["uid"]
        here = self.truth.get((node, name))
        if here is not None and here.uid == uid:
            here.pod_uid = pod_uid
            return
        for (other, which), held in self.truth.items():
            if which == name and other != node and held.uid == uid:
                self.wrong(f"{name} starts anew on {node}, its state ({held.tier}) is on {other}")
        self.truth[node, name] = Held(uid, pod_uid, "-")

    def _end(self, name: str, pod: Dict) -> None:
        """A pod that was asked to go has ended: the state is kept, or given up."""
        held = self.truth.get((pod["spec"]["nodeName"], name))
        disrupted = any(
            c["type"] == "DisruptionTarget" and c["status"] == "True" for c in pod["status"].get("conditions", ())
        )
        if held is not None and held.pod_uid == pod["metadata"]["uid"]:
            if disrupted:
                held.tier = "NVME" if held.tier == "-" else held.tier
            else:
                del self.truth[pod["spec"]["nodeName"], name]
        self.api.remove(PODS.plural, name)

    def fail(self, name: str) -> None:
        """The kubelet ends a pod for want of something: it stays as an object."""
        pod = self.pods[name]
        if pod["status"]["phase"] != "Running":
            return
        held = self.truth.get((pod["spec"]["nodeName"], name))
        if held is not None and held.pod_uid == pod["metadata"]["uid"] and held.tier == "-":
            held.tier = "NVME"
        conditions = [{"type": "ContainersReady", "status": "False"}, {"type": "DisruptionTarget", "status": "True"}]
        self.api.change(PODS.plural, name, status={"phase": "Failed", "reason": "Evicted", "conditions": conditions})

    def report(self, name: str) -> None:
        """The agent of the node on which the instance is."""
        instance = self.instances[name]
        node = instance["spec"].get("nodeName")
        if not node or node not in self.api.objects[NODES.plural]:
            return
        if "deletionTimestamp" in instance["metadata"]:
            self.truth.pop((node, name), None)
            if names.STATE_FINALIZER in instance["metadata"].get("finalizers", ()):
                self.api.change(GPU_INSTANCES.plural, name, metadata={"finalizers": []})
                self.api.remove(GPU_INSTANCES.plural, name)
            return
        held = self.truth.get((node, name))
        states = {"-": "Running", "RAM": "Suspended", "NVME": "Parked", "": "Waiting"}
        tier = held.tier if held and held.uid == instance["metadata"]["uid"] else ""
        pod = self.pods.get(name)
        if not tier and pod and pod["metadata"]["uid"] == instance["spec"].get("podUID"):
            return  # nothing is said of a pod before it has begun
        says = {"tier": tier, "state": states[tier], "nodeName": node, "podUID": instance["spec"].get("podUID", "")}
        says["observedGeneration"] = instance["metadata"]["generation"]
        self.api.change(GPU_INSTANCES.plural, name, status=says)

    def sleep_or_wake(self, name: str, tier: str) -> None:
        for (_, which), held in self.truth.items():
            pod = self.pods.get(name)
            if which == name and pod and pod["metadata"]["uid"] == held.pod_uid and pod["status"]["phase"] == "Running":
                held.tier = tier

    def collect(self) -> None:
        """Kubernetes' garbage collector."""
        uids = {w["metadata"]["uid"] for w in self.api.objects[GPU_WORKLOADS.plural].values()}
        for plural in (PODS.plural, GPU_INSTANCES.plural):
            for name, body in list(self.api.objects[plural].items()):
                owners = body["metadata"].get("ownerReferences", [])
                if owners and not any(owner["uid"] in uids for owner in owners):
                    self.api.ask_to_go(plural, name)

    def about_to(self, verb: str, plural: str, body: Dict) -> None:
        """Judge a write of the controller before it is done."""
        name = body["metadata"]["name"]
        self.note(f"controller: {verb} {plural}/{name}")
        self.api.writes[f"{verb} {plural}"] += 1
        if plural == GPU_INSTANCES.plural and verb == "delete":
            existing = [i for i in self.instances.values() if "deletionTimestamp" not in i["metadata"]]
            if len(existing) <= self.workload["spec"].get("replicas", 1):
                self.wrong(f"{name} is deleted, though only {len(existing)} exist")
        if plural == PODS.plural and verb == "delete":
            self._judge_deletion(name, body)
        if plural == GPU_INSTANCES.plural and verb == "apply":
            self._judge_intent(name, body)

    def _judge_deletion(self, name: str, pod: Dict) -> None:
        if not any(owner["uid"] for owner in pod["metadata"].get("ownerReferences", [])):
            self.wrong(f"a stranger's pod {name} is deleted")
        held = self.truth.get((pod["spec"].get("nodeName", ""), name))
        if held is None or held.pod_uid != pod["metadata"]["uid"]:
            return
        kept = any(c["type"] == "DisruptionTarget" for c in pod["status"].get("conditions", ()))
        instance = self.instances.get(name)
        leaving = instance is None or "deletionTimestamp" in instance["metadata"]
        outdated = _image(pod) != _image(self.workload["spec"]["template"])
        if not kept and not leaving and not outdated:
            self.wrong(f"the state of {name} is given up unasked")
        told = (instance or {}).get("status", {})
        sleeper = told.get("tier") in ("RAM", "NVME") and told.get("podUID") == pod["metadata"]["uid"]
        on_wake = self.workload["spec"].get("rollout", {}).get("sleeping", "OnWake") == "OnWake"
        if not kept and not leaving and sleeper and on_wake:
            self.wrong(f"{name} sleeps and is replaced, though sleeping: OnWake")

    def _judge_intent(self, name: str, body: Dict) -> None:
        old, new = self.instances[name]["spec"], body["spec"]
        if new.get("epoch", 0) < old.get("epoch", 0) or new.get("startAnew", 0) < old.get("startAnew", 0):
            self.wrong(f"{name}: epoch or startAnew falls")
        if new.get("podUID") != old.get("podUID") and new.get("podUID") and new.get("epoch") == old.get("epoch"):
            self.wrong(f"{name}: another pod without another epoch")
        held = self.truth.get((old.get("nodeName", ""), name))
        node = self.api.objects[NODES.plural].get(old.get("nodeName", ""))
        if new.get("nodeName") != old.get("nodeName") and held and node:
            self.wrong(f"{name}: leaves node {old['nodeName']}, where its state ({held.tier}) is")


def _image(body: Dict) -> str:
    image: str = body["spec"]["containers"][0]["image"]
    return image


def _first(given: Dict) -> Dict:
    first: Dict = given["status"]["conditions"][0]
    return first
