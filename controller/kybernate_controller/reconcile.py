"""One look at one workload: what is known becomes a snapshot, the snapshot a plan, the plan is done; until nothing is
left but to say what is the case, which is then said once.

Caches may lag, but never behind our own writes: each answer is put into them. What cannot be taken back (a pod or a
state that goes) is planned a second time on what the API server itself says now, and only that plan is done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.kube.cache import Key
from kybernate.kube.client import Client
from kybernate.kube.errors import ApiNotFoundError
from kybernate.kube.resource import GPU_INSTANCES, GPU_WORKLOADS, NODES, PODS
from kybernate_controller.actions import Action, Event, WriteStatus
from kybernate_controller.caches import BY_WORKLOAD, REFUSES, Caches, NodesByName
from kybernate_controller.doing import Doer, Target
from kybernate_controller.known import Known
from kybernate_controller.objects import Instance, Node, Pod
from kybernate_controller.plan import plan
from kybernate_controller.replica import Snapshot

log = logging.getLogger("kybernate_controller")

ROUNDS = 20
"""A plan is done in a handful of rounds; one that goes on for longer makes room for others."""
AT_ONCE = 8
"""Writes for one workload at a time."""


class Reconciler:
    """For `run_loop`; keys are those of GpuWorkloads, with an empty name for the instances of annotated pods."""

    def __init__(
        self,
        client: Client,
        caches: Caches,
        tell: Callable[[GpuWorkloadObject, Event], None],
        *,
        may_write: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell` records an event about a workload; `may_write` raises where we do not lead."""
        self.done: Counter[str] = Counter()
        self._client = client
        self._caches = caches
        self._tell = tell
        self._clock = clock
        self._doer = Doer(client, may_write)
        self._known: dict[Key, Known] = {}

    async def __call__(self, key: Key) -> float | None:
        known = self._known.setdefault(key, Known())
        idle = 0
        try:
            for _ in range(ROUNDS):
                wanted, done = await self._round(key, known)
                if not wanted:
                    return known.again_in(self._clock())
                idle = 0 if done else idle + 1
                if idle > 1:  # nothing that we ask for fits the world any more: the caches will say why
                    return 1.0
            log.warning("%s: still something to do after %d rounds", key, ROUNDS)
            return 1.0
        finally:
            if known.empty:
                self._known.pop(key, None)

    async def _round(self, key: Key, known: Known) -> tuple[int, int]:
        """Plan and do once: how many writes were wanted, and done."""
        snapshot = self._snapshot(key, known)
        actions = plan(snapshot, now_text())
        if any(action.final for action in actions):
            snapshot = await self._asked(key, known)
            actions = plan(snapshot, now_text())
        writes = [action for action in actions if not isinstance(action, WriteStatus)]
        target = Target(key, known, self._caches, now_text)
        done = 0
        for start in range(0, len(writes), AT_ONCE):
            batch = writes[start : start + AT_ONCE]
            results = await asyncio.gather(*(self._do(a, target, snapshot) for a in batch), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
                done += result
        if not writes:
            for action in actions:
                await self._do(action, target, snapshot)
        return len(writes), done

    async def _do(self, action: Action, target: Target, snapshot: Snapshot) -> bool:
        if not await self._doer.do(action, target):
            return False
        self.done[type(action).__name__] += 1
        events = action.events if isinstance(action, WriteStatus) else (action.event,) if action.event else ()
        log.log(
            logging.DEBUG if isinstance(action, WriteStatus) else logging.INFO,
            "%s: %s%s",
            target.key,
            action,
            "".join(f" ({event.message})" for event in events),
        )
        if snapshot.workload is not None:
            for event in events:
                self._tell(snapshot.workload, event)
        return True

    def _snapshot(self, key: Key, known: Known) -> Snapshot:
        """What the caches say."""
        caches = self._caches
        workload = caches.workloads.get(key.namespace, key.name) if key.name else None
        pods = {pod.metadata.name: pod for pod in caches.pods.by_index(BY_WORKLOAD, key)} if key.name else {}
        instances = {i.metadata.name: i for i in caches.instances.by_index(BY_WORKLOAD, key)}
        if workload is not None:
            # A stranger's object may have a name that will be ours.
            for ordinal in range(workload.spec.replicas):
                name = f"{key.name}-{ordinal}"
                if name not in pods and (pod := caches.pods.get(key.namespace, name)):
                    pods[name] = pod
                if name not in instances and (instance := caches.instances.get(key.namespace, name)):
                    instances[name] = instance
        shown = {o.metadata.uid for objects in (pods.values(), instances.values()) for o in objects}
        known.look(workload.metadata.generation if workload else 0, self._clock(), shown)
        nodes = NodesByName(caches.nodes)
        return self._made(key, known, workload, pods=pods.values(), instances=instances.values(), nodes=nodes)

    async def _asked(self, key: Key, known: Known) -> Snapshot:
        """What the API server says, now; the caches learn it too."""
        caches, client, namespace = self._caches, self._client, key.namespace
        workload = None
        if key.name:
            try:
                workload = await client.get(GPU_WORKLOADS, GpuWorkloadObject, key.name, namespace)
                caches.workloads.absorb(workload)
            except ApiNotFoundError:
                workload = None
        selector = f"spec.workload={key.name}"
        instances = await client.list(GPU_INSTANCES, Instance, namespace, field_selector=selector)
        for instance in instances.items:
            caches.instances.absorb(instance)
        pods: list[Pod] = []
        if key.name:
            selector = f"{names.WORKLOAD}={key.name}"
            pods = (await client.list(PODS, Pod, namespace, label_selector=selector)).items
            for pod in pods:
                caches.pods.absorb(pod)
        wanted = {i.spec.node_name for i in instances.items} | {pod.spec.node_name for pod in pods}
        nodes = await self._nodes_asked(wanted - {""})
        return self._made(key, known, workload, pods=pods, instances=instances.items, nodes=nodes)

    async def _nodes_asked(self, wanted: set[str]) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        for name in sorted(wanted):
            try:
                nodes[name] = await self._client.get(NODES, Node, name)
                self._caches.nodes.absorb(nodes[name])
            except ApiNotFoundError:
                continue
        return nodes

    def _made(
        self,
        key: Key,
        known: Known,
        workload: GpuWorkloadObject | None,
        *,
        pods: Iterable[Pod],
        instances: Iterable[Instance],
        nodes: Mapping[str, Node],
    ) -> Snapshot:
        return Snapshot(
            namespace=key.namespace,
            name=key.name,
            workload=workload,
            pods=[pod for pod in pods if pod.metadata.uid not in known.gone],
            instances=[instance for instance in instances if instance.metadata.uid not in known.gone],
            nodes=nodes,
            findings=known.findings,
            ended=frozenset(known.ended),
            refusing=self._caches.gpu_nodes.by_index(REFUSES, True),
        )


def now_text() -> str:
    """As conditions write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
