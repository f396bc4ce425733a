"""Which workload is looked at, and when: five informers put keys into one queue.

    GpuWorkload changes            its key
    GpuInstance changes            the key of its workload; of annotated pods, the key with an empty name
    pod changes (with our label)   the key of its workload
    node comes, goes, is cordoned, the keys of all instances whose state lies there
    answers or not
    GpuNode can take new ones      the keys of all pods that avoid it and wait for a node

Every change makes one look at a key, however many changes come while it waits. The informers fill while another
process leads; a controller that becomes the leader looks at everything once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.kube.cache import Change, Informer, Key
from kybernate.kube.client import Client
from kybernate.kube.controller import run_loop
from kybernate.kube.events import Recorder, Regarding
from kybernate.kube.queue import WorkQueue
from kybernate.kube.resource import GPU_INSTANCES, GPU_NODES, GPU_WORKLOADS, NODES, PODS
from kybernate_controller import placement, slim
from kybernate_controller.actions import Event
from kybernate_controller.caches import BY_AVOIDED, BY_NODE, BY_WORKLOAD, REFUSES, Caches
from kybernate_controller.objects import GpuNode, Instance, Node, Pod
from kybernate_controller.reconcile import Reconciler

log = logging.getLogger("kybernate_controller")


@dataclass
class Tally:
    """What was done, for metrics."""

    looks: int = 0
    failures: int = 0
    seconds: float = 0.0
    actions: dict[str, int] = field(default_factory=dict)


class Controller:
    """Open it with `opened`, then `lead` while this process is the leader."""

    def __init__(self, client: Client, recorder: Recorder, *, workers: int = 8) -> None:
        self.tally = Tally()
        self.queue: WorkQueue[Key] = WorkQueue(group=lambda key: key.namespace)
        self.workloads = Informer(client, GPU_WORKLOADS, GpuWorkloadObject, transform=slim.workload)
        self.instances = Informer(
            client,
            GPU_INSTANCES,
            Instance,
            indexers={BY_WORKLOAD: _workload_of_instance, BY_NODE: _node_of},
            transform=slim.instance,
        )
        self.pods = Informer(
            client,
            PODS,
            Pod,
            label_selector=names.WORKLOAD,
            indexers={BY_WORKLOAD: _workload_of_pod, BY_AVOIDED: placement.avoided_by},
            transform=slim.pod,
        )
        self.nodes = Informer(client, NODES, Node, transform=slim.node)
        self.gpu_nodes = Informer(
            client, GPU_NODES, GpuNode, indexers={REFUSES: placement.refuses}, transform=slim.gpu_node
        )
        self._client = client
        self._recorder = recorder
        self._workers = workers
        self.workloads.subscribe(self._workload_changed)
        self.instances.subscribe(self._instance_changed)
        self.pods.subscribe(self._pod_changed)
        self.nodes.subscribe(self._node_changed)
        self.gpu_nodes.subscribe(self._gpu_node_changed)

    @property
    def informers(self) -> tuple[Informer[Any], ...]:
        return self.workloads, self.instances, self.pods, self.nodes, self.gpu_nodes

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Fill the caches and keep them so; begins at once. An informer that fails, fails all."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(i.run(), name=f"informer {i.resource}") for i in self.informers]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    @property
    def synced(self) -> bool:
        return all(informer.is_synced for informer in self.informers)

    async def lead(self, may_write: Callable[[], None] = lambda: None) -> None:
        """Look at everything, then at what changes; until cancelled."""
        began = time.monotonic()
        for informer in self.informers:
            await informer.synced()
        counts = ", ".join(f"{len(informer)} {informer.resource.plural}" for informer in self.informers)
        log.info("caches are filled after %.1f s: %s", time.monotonic() - began, counts)
        for workload in self.workloads.items():
            self.queue.add(Key(workload.metadata.namespace, workload.metadata.name))
        for instance in self.instances.items():
            self._add(_workload_of_instance(instance))
        caches = Caches(self.workloads, self.instances, self.pods, self.nodes, self.gpu_nodes)
        reconciler = Reconciler(self._client, caches, self._tell, may_write=may_write)

        async def look(key: Key) -> float | None:
            started = time.perf_counter()
            self.tally.looks += 1
            try:
                return await reconciler(key)
            except BaseException:
                self.tally.failures += 1
                raise
            finally:
                self.tally.seconds += time.perf_counter() - started
                self.tally.actions = dict(reconciler.done)

        await run_loop(self.queue, look, self._workers)

    def _tell(self, workload: GpuWorkloadObject, event: Event) -> None:
        about = Regarding.of(GPU_WORKLOADS, workload)
        self._recorder.record(about, "Warning" if event.warning else "Normal", event.reason, event.message)

    def _workload_changed(self, change: Change[GpuWorkloadObject]) -> None:
        self.queue.add(change.key)

    def _instance_changed(self, change: Change[Instance]) -> None:
        for instance in (change.old, change.new):
            if instance is not None:
                self._add(_workload_of_instance(instance))

    def _pod_changed(self, change: Change[Pod]) -> None:
        for pod in (change.old, change.new):
            if pod is not None:
                self._add(_workload_of_pod(pod))

    def _node_changed(self, change: Change[Node]) -> None:
        if change.old and change.new and _matters(change.old) == _matters(change.new):
            return
        if not self.instances.is_synced:
            return  # all are looked at once they are here
        for instance in self.instances.by_index(BY_NODE, change.key.name):
            self._add(_workload_of_instance(instance))

    def _gpu_node_changed(self, change: Change[GpuNode]) -> None:
        """Pods that avoid a node may be waiting for it."""
        refused = change.old is not None and bool(placement.refusal(change.old))
        if refused and self.pods.is_synced and not (change.new and placement.refusal(change.new)):
            for pod in self.pods.by_index(BY_AVOIDED, change.key.name):
                self._add(_workload_of_pod(pod))

    def _add(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.queue.add(key)


def _workload_of_instance(instance: Instance) -> tuple[Key]:
    return (Key(instance.metadata.namespace, instance.spec.workload),)


def _workload_of_pod(pod: Pod) -> tuple[Key]:
    return (Key(pod.metadata.namespace, pod.metadata.labels.get(names.WORKLOAD, "")),)


def _node_of(instance: Instance) -> tuple[str, ...]:
    return (instance.spec.node_name,) if instance.spec.node_name else ()


def _matters(node: Node) -> tuple[bool, bool, bool]:
    return node.ready, node.spec.unschedulable, node.out_of_service
