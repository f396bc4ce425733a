"""The kinds beside workloads: GpuCheckpoints and GpuRestoreJobs, looked at when something of theirs changes.

GpuCheckpoint changes                    its key, and those of the jobs that name it
GpuRestoreJob changes                    its key
a pod or GpuInstance of a job changes    the job's key
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from kybernate.api import names
from kybernate.api.gpucheckpoint import GpuCheckpoint
from kybernate.api.gpuinstance import GpuInstance
from kybernate.api.gpurestorejob import GpuRestoreJob
from kybernate.kube.cache import Change, Informer
from kybernate.kube.client import Client
from kybernate.kube.controller import run_loop
from kybernate.kube.events import Recorder
from kybernate.kube.queue import WorkQueue
from kybernate.kube.resource import GPU_CHECKPOINTS, GPU_INSTANCES, GPU_RESTORE_JOBS, PODS
from kybernate_controller.checkpoints import CheckpointReconciler
from kybernate_controller.progress import Pod
from kybernate_controller.restorejobs import RestoreJobReconciler

log = logging.getLogger("kybernate_controller")

BY_CHECKPOINT = "checkpoint"
WORKERS = 4


class Item(NamedTuple):
    """One object to look at."""

    plural: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.plural} {self.namespace}/{self.name}"


class Copies:
    """Open it with `opened`, then `lead` while this process is the leader."""

    def __init__(self, client: Client, recorder: Recorder) -> None:
        self._client, self._recorder = client, recorder
        self.queue: WorkQueue[Item] = WorkQueue(group=lambda item: item.namespace)
        self.checkpoints = Informer(client, GPU_CHECKPOINTS, GpuCheckpoint)
        self.jobs = Informer(client, GPU_RESTORE_JOBS, GpuRestoreJob, indexers={BY_CHECKPOINT: _checkpoint_of})
        self.pods = Informer(client, PODS, Pod, label_selector=names.RESTORE_JOB)
        self.instances = Informer(client, GPU_INSTANCES, GpuInstance, label_selector=names.RESTORE_JOB)
        self.checkpoints.subscribe(self._checkpoint_changed)
        self.jobs.subscribe(lambda change: self._add(GPU_RESTORE_JOBS.plural, change.key.namespace, change.key.name))
        self.pods.subscribe(self._made_changed)
        self.instances.subscribe(self._made_changed)

    @property
    def informers(self) -> tuple[Informer[Any], ...]:
        return self.checkpoints, self.jobs, self.pods, self.instances

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Fill the caches and keep them so."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each.run(), name=f"informer {each.resource}") for each in self.informers]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def lead(self, may_write: Callable[[], None] = lambda: None) -> None:
        """Look at everything, then at what changes; until cancelled."""
        for informer in self.informers:
            await informer.synced()
        checkpoint = CheckpointReconciler(self._client, self.checkpoints, self._recorder, may_write)
        job = RestoreJobReconciler(
            self._client, checkpoints=self.checkpoints, jobs=self.jobs, instances=self.instances, pods=self.pods,
            recorder=self._recorder, may_write=may_write,
        )  # fmt: skip
        for each in self.checkpoints.items():
            self._add(GPU_CHECKPOINTS.plural, each.metadata.namespace, each.metadata.name)
        for one in self.jobs.items():
            self._add(GPU_RESTORE_JOBS.plural, one.metadata.namespace, one.metadata.name)

        async def look(item: Item) -> float | None:
            reconcile = checkpoint if item.plural == GPU_CHECKPOINTS.plural else job
            return await reconcile(item.namespace, item.name)

        await run_loop(self.queue, look, WORKERS)

    def _checkpoint_changed(self, change: Change[GpuCheckpoint]) -> None:
        self._add(GPU_CHECKPOINTS.plural, change.key.namespace, change.key.name)
        if self.jobs.is_synced:
            for job in self.jobs.by_index(BY_CHECKPOINT, change.key):
                self._add(GPU_RESTORE_JOBS.plural, job.metadata.namespace, job.metadata.name)

    def _made_changed(self, change: Change[Any]) -> None:
        for made in (change.old, change.new):
            if made is not None and (name := made.metadata.annotations.get(names.RESTORE_JOB_NAME)):
                self._add(GPU_RESTORE_JOBS.plural, made.metadata.namespace, name)

    def _add(self, plural: str, namespace: str, name: str) -> None:
        self.queue.add(Item(plural, namespace, name))


def _checkpoint_of(job: GpuRestoreJob) -> tuple[tuple[str, str]]:
    return ((job.metadata.namespace, job.spec.checkpoint),)
