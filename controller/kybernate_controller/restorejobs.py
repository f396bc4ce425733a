"""One GpuRestoreJob: a pod and a GpuInstance are made of a checkpoint, once, and what becomes of them is told.

    Pending     until the checkpoint is Ready
    Placing     the pod is there; its container is not created yet
    Restoring   the agent has let the container in; its processes come back
    Succeeded   they run
    Failed      the message says why; the pod that the job made is taken away again, nobody else's ever is

The pod is told from a stranger's by the job's uid, so a controller that is killed between two writes finds its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from kybernate.api import names
from kybernate.api.gpucheckpoint import GpuCheckpoint
from kybernate.api.gpuinstance import GpuInstance
from kybernate.api.gpurestorejob import GpuRestoreJob
from kybernate.api.objects import Metadata, Object
from kybernate.errors import RefusedError
from kybernate.kube.client import Client
from kybernate.kube.errors import (
    AlreadyExistsError,
    ApiInvalidError,
    ApiNotFoundError,
    ConflictError,
    ForbiddenError,
)
from kybernate.kube.events import Recorder, Regarding
from kybernate.kube.resource import GPU_CHECKPOINTS, GPU_INSTANCES, GPU_RESTORE_JOBS, POD_TEMPLATES, PODS
from kybernate_controller.checkpoints import template_name, unanswered
from kybernate_controller.clone import instance_of, is_of, pod_of
from kybernate_controller.progress import Pod, Progress, Seen, progress
from kybernate_controller.reconcile import now_text

log = logging.getLogger("kybernate_controller")

MANAGER = names.CONTROLLER_MANAGER
T_co = TypeVar("T_co", covariant=True)
OVER = ("Succeeded", "Failed")
PLACING_SECONDS = 30.0
"""So often it is asked whether the node of a pod that is not there yet is to be waited for."""


class Held(Protocol[T_co]):
    def get(self, namespace: str, name: str) -> T_co | None: ...


class JobFailedError(RefusedError):
    """{message}"""


class WaitsError(RefusedError):
    """{message}"""


class KeptTemplate(Object, kw_only=True):
    """A checkpoint's PodTemplate."""

    metadata: Metadata
    template: msgspec.Raw


class RestoreJobReconciler:
    """For `run_loop`."""

    def __init__(
        self,
        client: Client,
        *,
        checkpoints: Held[GpuCheckpoint],
        jobs: Held[GpuRestoreJob],
        instances: Held[GpuInstance],
        pods: Held[Pod],
        recorder: Recorder,
        may_write: Callable[[], None],
    ) -> None:
        self._client, self._recorder, self._may_write = client, recorder, may_write
        self._checkpoints, self._jobs = checkpoints, jobs
        self._instances, self._pods = instances, pods
        self._began: dict[str, float] = {}  # by the job's uid, when it was made (time.monotonic)
        self._why: dict[str, str] = {}  # by uid, the first reason why a job failed: its pod's end is none
        self._over: dict[tuple[str, str], str] = {}  # uids of jobs whose end is written; the cache may be behind

    async def __call__(self, namespace: str, name: str) -> float | None:
        job, key = self._jobs.get(namespace, name), (namespace, name)
        if job is None or job.metadata.deletion_timestamp is not None or job.status.phase in OVER:
            self._why.pop(self._over.pop(key, ""), None)
            return None
        if self._over.get(key) == job.metadata.uid:
            return None
        self._may_write()
        try:
            if job.status.phase in (None, "Pending") and job.metadata.uid not in self._began:
                await self._make(job)
                return None
            return await self._follow(job)
        except WaitsError as waits:
            await self._say(job, {"phase": "Pending", "message": str(waits)})
        except JobFailedError as error:
            await self._fail(job, str(error))
        return None

    # --- making ---

    async def _make(self, job: GpuRestoreJob) -> None:
        meta = job.metadata
        checkpoint = await self._ready_checkpoint(job)
        template = await self._template(checkpoint)
        node, name = checkpoint.status.node, job.spec.pod_name
        await self._refuse_taken(job)
        body = pod_of(
            msgspec.json.decode(template.template), name=name, namespace=meta.namespace, node=node, job=meta.name,
            uid=meta.uid,
        )  # fmt: skip
        pod = await self._pod(job, body)
        began = time.monotonic()
        policy = msgspec.json.decode(template.metadata.annotations.get(names.POLICY, "{}"), type=dict[str, Any])
        manifest = checkpoint.status.manifest
        wanted = instance_of(pod.metadata, policy, manifest=manifest, node=node, job=meta.name, uid=meta.uid)
        try:
            await self._client.create(GPU_INSTANCES, wanted, meta.namespace, into=dict[str, Any])
        except AlreadyExistsError as error:
            found = await self._client.get(GPU_INSTANCES, GpuInstance, name, meta.namespace)
            if not is_of(found.metadata, meta.uid):
                raise JobFailedError(f"a GpuInstance {name} exists already") from error
        except (ApiInvalidError, ForbiddenError) as error:
            raise JobFailedError(f"its GpuInstance is refused: {error.problem}") from error
        self._began[meta.uid] = began  # from now on it is followed, also where the cache is behind
        await self._say(job, {"phase": "Placing", "pod": name, "node": node})

    async def _ready_checkpoint(self, job: GpuRestoreJob) -> GpuCheckpoint:
        """Raises WaitsError, JobFailedError."""
        name, namespace = job.spec.checkpoint, job.metadata.namespace
        checkpoint = self._checkpoints.get(namespace, name)
        if checkpoint is None:
            try:  # it may have been made in the same moment
                checkpoint = await self._client.get(GPU_CHECKPOINTS, GpuCheckpoint, name, namespace)
            except ApiNotFoundError as error:
                raise JobFailedError(f"there is no GpuCheckpoint {name} in namespace {namespace}") from error
        if checkpoint.metadata.deletion_timestamp is not None:
            raise JobFailedError(f"GpuCheckpoint {name} is being deleted")
        if checkpoint.status.phase in ("Failed", "Expired"):
            said = next((c.message for c in checkpoint.status.conditions if c.type == "Ready"), "")
            raise JobFailedError(f"GpuCheckpoint {name} is {checkpoint.status.phase}: {said}")
        if checkpoint.status.phase != "Ready":
            raise WaitsError(f"waits until GpuCheckpoint {name} is Ready")
        await self._refuse_gone(checkpoint.status.node)
        return checkpoint

    async def _refuse_gone(self, node: str) -> None:
        """A copy is restored where it lies, or nowhere. Raises JobFailedError."""
        if gone := await unanswered(self._client, node):
            raise JobFailedError(f"the copy lies on {gone}")

    async def _template(self, checkpoint: GpuCheckpoint) -> KeptTemplate:
        name, namespace = template_name(checkpoint), checkpoint.metadata.namespace
        try:
            found = await self._client.get(POD_TEMPLATES, KeptTemplate, name, namespace)
        except ApiNotFoundError as error:
            raise JobFailedError(f"PodTemplate {name}, the template of its pod, is gone") from error
        if not any(owner.uid == checkpoint.metadata.uid for owner in found.metadata.owner_references):
            raise JobFailedError(f"PodTemplate {name} is not the checkpoint's")
        return found

    async def _refuse_taken(self, job: GpuRestoreJob) -> None:
        """An instance without a pod keeps its name too."""
        name, meta = job.spec.pod_name, job.metadata
        try:
            found = await self._client.get(GPU_INSTANCES, GpuInstance, name, meta.namespace)
        except ApiNotFoundError:
            return
        if not is_of(found.metadata, meta.uid):
            raise JobFailedError(f"a GpuInstance {name} exists already: choose another podName")

    async def _pod(self, job: GpuRestoreJob, body: dict[str, Any]) -> Pod:
        """The job's pod, made now or before. Raises JobFailedError."""
        name, namespace = job.spec.pod_name, job.metadata.namespace
        try:
            return await self._client.create(PODS, body, namespace, into=Pod)
        except AlreadyExistsError as error:
            pod = await self._client.get(PODS, Pod, name, namespace)
            if not is_of(pod.metadata, job.metadata.uid):
                raise JobFailedError(f"a pod {name} exists already: choose another podName") from error
            return pod
        except (ApiInvalidError, ForbiddenError) as error:
            raise JobFailedError(f"the pod is refused: {error.problem}") from error

    # --- following ---

    async def _follow(self, job: GpuRestoreJob) -> float | None:
        meta, name = job.metadata, job.spec.pod_name
        pod, instance = self._pods.get(meta.namespace, name), self._instances.get(meta.namespace, name)
        if pod is None or instance is None:  # the caches may be behind what was made
            pod, instance = await self._asked(job)
        if pod is not None and not is_of(pod.metadata, meta.uid):
            pod = None
        found: Progress = progress(Seen(job.status, pod, instance, time.time()))
        if found.failed:
            raise JobFailedError(found.message)
        if found.phase == "Placing" and instance is not None:
            await self._refuse_gone(instance.spec.node_name)
        status: dict[str, Any] = {"phase": found.phase, "message": found.message}
        if found.phase == "Succeeded":
            began = self._began.pop(meta.uid, None)
            passed = found.since_creation if began is None else time.monotonic() - began
            placing = round(max(0.0, passed - found.restoring_seconds), 3)
            status["seconds"] = {"placing": placing, "restoring": round(found.restoring_seconds, 3)}
        await self._say(job, {"pod": name, "node": instance.spec.node_name if instance else "", **status})
        if found.phase == "Succeeded":
            self._over[meta.namespace, meta.name] = meta.uid
            self._tell(job, "Normal", "Restored", f"pod {name} goes on from GpuCheckpoint {job.spec.checkpoint}")
        return PLACING_SECONDS if found.phase == "Placing" else found.again_seconds

    async def _asked(self, job: GpuRestoreJob) -> tuple[Pod | None, GpuInstance | None]:
        namespace, name = job.metadata.namespace, job.spec.pod_name
        pod, instance = None, None
        try:
            pod = await self._client.get(PODS, Pod, name, namespace)
            instance = await self._client.get(GPU_INSTANCES, GpuInstance, name, namespace)
        except ApiNotFoundError:
            pass
        return pod, instance

    # --- the end ---

    async def _fail(self, job: GpuRestoreJob, message: str) -> None:
        """Its own pod goes first, so that a job that says Failed has left nothing behind."""
        name, meta = job.spec.pod_name, job.metadata
        message = self._why.setdefault(meta.uid, message)
        try:
            pod = await self._client.get(PODS, Pod, name, meta.namespace)
            if is_of(pod.metadata, meta.uid):
                await self._client.delete(PODS, name, meta.namespace, uid=pod.metadata.uid)
        except (ApiNotFoundError, ConflictError):
            pass
        self._began.pop(meta.uid, None)
        await self._say(job, {"phase": "Failed", "message": message, "pod": job.status.pod, "node": job.status.node})
        self._over[meta.namespace, meta.name] = meta.uid
        self._tell(job, "Warning", "Failed", message)

    async def _say(self, job: GpuRestoreJob, status: dict[str, Any]) -> None:
        meta = job.metadata
        phase, message = status["phase"], status.get("message", "")
        if job.status.phase == phase and job.status.message == message:
            return
        conditions = [_condition(job, "Complete", phase == "Succeeded", phase, message)]
        if phase == "Failed":
            conditions.append(_condition(job, "Failed", True, phase, message))
        body = {
            "metadata": {"name": meta.name, "uid": meta.uid},
            "status": {"observedGeneration": meta.generation, **_given(status), "conditions": conditions},
        }
        try:
            await self._client.apply(
                GPU_RESTORE_JOBS, body, meta.namespace, manager=MANAGER, subresource="status", into=dict[str, Any]
            )
        except (ApiNotFoundError, ConflictError) as error:
            log.info("restore job %s/%s: it has gone: %s", meta.namespace, meta.name, error)

    def _tell(self, job: GpuRestoreJob, kind: Any, reason: str, message: str) -> None:
        self._recorder.record(Regarding.of(GPU_RESTORE_JOBS, job), kind, reason, message)


def _condition(job: GpuRestoreJob, kind: str, holds: bool, reason: str, message: str) -> dict[str, Any]:
    old = next((c for c in job.status.conditions if c.type == kind), None)
    same = old is not None and old.status == str(holds)
    return {
        "type": kind,
        "status": str(holds),
        "reason": reason,
        "message": message,
        "lastTransitionTime": old.last_transition_time if old is not None and same else now_text(),
        "observedGeneration": job.metadata.generation,
    }


def _given(status: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if value != "" or key == "message"}
