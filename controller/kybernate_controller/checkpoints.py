"""One GpuCheckpoint, as the controller sees to it: from the wish to the node that carries it out, and behind it.

    no phase     its source is looked up; finalizer, template, then `status.node` with phase Pending: the agent's turn
    Ready        with leaveRunning: false its source's pod is deleted
    deleted      where no agent will ever answer (it had no node, or the Node is gone or out of service) the finalizer
                 is taken away

Each write can be repeated, and the order is such that a controller that is killed between two goes on with the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from kybernate.api import names
from kybernate.api.gpucheckpoint import GpuCheckpoint
from kybernate.api.gpuinstance import GpuInstance
from kybernate.api.objects import Metadata, Object, builtins
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
from kybernate.kube.resource import GPU_CHECKPOINTS, GPU_INSTANCES, NODES, POD_TEMPLATES, PODS
from kybernate_controller import eviction
from kybernate_controller.clone import template_of
from kybernate_controller.objects import Node
from kybernate_controller.reconcile import now_text

log = logging.getLogger("kybernate_controller")

MANAGER = names.CONTROLLER_MANAGER
SOURCE_SECONDS = 60.0
"""So long the source may take to be there whole: pod scheduled, GpuInstance made."""
LOOK_SECONDS = 1.0
NODE_GONE_SECONDS = 10.0
SOURCE_ENDED = "SourceEnded"


class NoSourceError(RefusedError):
    """{message}"""


class NotThereYetError(RefusedError):
    """{message}"""


class Held(Protocol):
    def get(self, namespace: str, name: str) -> GpuCheckpoint | None: ...


@dataclass(frozen=True)
class Source:
    """What is copied, whole and on a node."""

    instance: GpuInstance
    pod: dict[str, Any]

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])


class Named(Object, kw_only=True):
    """Any object, as far as what it is called and whose it is."""

    metadata: Metadata


def template_name(checkpoint: GpuCheckpoint) -> str:
    """Its uid, so that a checkpoint made again under its name has another."""
    return f"checkpoint-{checkpoint.metadata.uid}"


async def unanswered(client: Client, node: str) -> str:
    """`eviction.unanswered`, asked of the API server. Raises ApiError."""
    try:
        found = {node: await client.get(NODES, Node, node)}
    except ApiNotFoundError:
        found = {}
    return eviction.unanswered(node, found)


class CheckpointReconciler:
    """For `run_loop`."""

    def __init__(self, client: Client, held: Held, recorder: Recorder, may_write: Callable[[], None]) -> None:
        self._client, self._held, self._recorder, self._may_write = client, held, recorder, may_write

    async def __call__(self, namespace: str, name: str) -> float | None:
        checkpoint = self._held.get(namespace, name)
        if checkpoint is None:
            return None
        if checkpoint.metadata.deletion_timestamp is not None:
            return await self._leave(checkpoint)
        if not checkpoint.status.phase:
            return await self._begin(checkpoint)
        if checkpoint.status.phase == "Ready" and not checkpoint.spec.leave_running:
            await self._end_source(checkpoint)
        return None

    # --- the beginning ---

    async def _begin(self, checkpoint: GpuCheckpoint) -> float | None:
        self._may_write()
        meta = checkpoint.metadata
        try:
            source = await self._source(checkpoint)
            marked = await self._mark(checkpoint, source)
            await self._keep_template(checkpoint, source)
        except NotThereYetError as error:
            if _age(meta.creation_timestamp) < SOURCE_SECONDS:
                return LOOK_SECONDS
            await self._fail(checkpoint, "NoSource", str(error))
        except NoSourceError as error:
            await self._fail(checkpoint, "NoSource", str(error))
        except (ApiInvalidError, ForbiddenError) as error:
            await self._fail(checkpoint, "Template", f"its pod's template cannot be kept: {error.problem}")
        except ConflictError:
            return 0.1  # the cache is behind
        else:
            status = {"phase": "Pending", "node": source.instance.spec.node_name}
            await self._say(marked, status, _ready(marked, "Waiting", "its node's agent has not begun"), first=True)
        return None

    async def _source(self, checkpoint: GpuCheckpoint) -> Source:
        """Raises NoSourceError, NotThereYetError."""
        namespace, wanted = checkpoint.metadata.namespace, checkpoint.spec.source
        instance = None
        if wanted.instance:
            instance = await self._instance(namespace, wanted.instance)
            if not instance.spec.pod:
                raise NotThereYetError(f"GpuInstance {wanted.instance} has no pod")
        pod_name = instance.spec.pod if instance else wanted.pod
        try:
            pod = await self._client.get(PODS, dict[str, Any], pod_name, namespace)
        except ApiNotFoundError as error:
            raise NoSourceError(f"there is no pod {pod_name} in namespace {namespace}") from error
        meta = pod["metadata"]
        managed = (meta.get("annotations") or {}).get(names.CONTAINERS)
        if pod["spec"].get("runtimeClassName") != names.RUNTIME_HANDLER or not managed:
            raise NoSourceError(f"pod {pod_name} is not managed by Kybernate")
        if meta.get("deletionTimestamp"):
            raise NoSourceError(f"pod {pod_name} is being deleted")
        if instance is None:
            name = (meta.get("labels") or {}).get(names.INSTANCE) or pod_name
            try:
                instance = await self._instance(namespace, name)
            except NoSourceError as error:
                raise NotThereYetError(str(error)) from error
        if instance.spec.pod_uid != meta["uid"] or not instance.spec.node_name:
            raise NotThereYetError(f"pod {pod_name} is not the GpuInstance {instance.metadata.name} yet")
        return Source(instance, pod)

    async def _instance(self, namespace: str, name: str) -> GpuInstance:
        try:
            found = await self._client.get(GPU_INSTANCES, GpuInstance, name, namespace)
        except ApiNotFoundError as error:
            raise NoSourceError(f"there is no GpuInstance {name} in namespace {namespace}") from error
        if found.metadata.deletion_timestamp is not None:
            raise NoSourceError(f"GpuInstance {name} is being deleted")
        return found

    async def _mark(self, checkpoint: GpuCheckpoint, source: Source) -> GpuCheckpoint:
        """Finalizer, and of which pod it is. Raises ConflictError."""
        meta = checkpoint.metadata
        uid = meta.annotations.get(names.SOURCE_POD)
        if names.STATE_FINALIZER in meta.finalizers and uid == source.uid:
            return checkpoint
        finalizers = list(dict.fromkeys([*meta.finalizers, names.STATE_FINALIZER]))
        patch = {
            "metadata": {
                "resourceVersion": meta.resource_version,
                "finalizers": finalizers,
                "annotations": {names.SOURCE_POD: source.uid},
            }
        }
        return await self._client.merge_patch(
            GPU_CHECKPOINTS, GpuCheckpoint, meta.name, patch, meta.namespace, manager=MANAGER
        )

    async def _keep_template(self, checkpoint: GpuCheckpoint, source: Source) -> None:
        meta = checkpoint.metadata
        owner = {"apiVersion": names.API_VERSION, "kind": "GpuCheckpoint", "name": meta.name, "uid": meta.uid}
        policy = msgspec.json.encode(builtins(source.instance.spec.policy)).decode()
        body = {
            "metadata": {
                "name": template_name(checkpoint),
                "namespace": meta.namespace,
                "annotations": {names.POLICY: policy, names.SOURCE_POD: source.uid},
                "ownerReferences": [owner],
            },
            "template": template_of(source.pod),
        }
        try:
            await self._client.create(POD_TEMPLATES, body, meta.namespace, into=Named)
        except AlreadyExistsError as error:
            found = await self._client.get(POD_TEMPLATES, Named, template_name(checkpoint), meta.namespace)
            ours = any(o.uid == meta.uid for o in found.metadata.owner_references)
            if not ours or found.metadata.annotations.get(names.SOURCE_POD) != source.uid:
                raise NoSourceError(f"PodTemplate {template_name(checkpoint)} is there and not its own") from error

    async def _fail(self, checkpoint: GpuCheckpoint, reason: str, message: str) -> None:
        await self._say(checkpoint, {"phase": "Failed"}, _ready(checkpoint, reason, message), first=True)
        self._tell(checkpoint, "Warning", "Failed", message)

    # --- behind it ---

    async def _end_source(self, checkpoint: GpuCheckpoint) -> None:
        if any(c.type == SOURCE_ENDED for c in checkpoint.status.conditions):
            return
        self._may_write()
        meta, uid = checkpoint.metadata, checkpoint.metadata.annotations.get(names.SOURCE_POD, "")
        source = checkpoint.spec.source
        name = source.pod
        if source.instance:
            try:
                name = (await self._client.get(GPU_INSTANCES, GpuInstance, source.instance, meta.namespace)).spec.pod
            except ApiNotFoundError:
                name = ""
        if name and uid:
            try:
                await self._client.delete(PODS, name, meta.namespace, uid=uid)
                self._tell(checkpoint, "Normal", SOURCE_ENDED, f"pod {name} is deleted: leaveRunning is false")
            except (ApiNotFoundError, ConflictError):
                pass  # it has gone by itself
        condition = {
            "type": SOURCE_ENDED,
            "status": "True",
            "reason": "LeaveRunningFalse",
            "message": "",
            "lastTransitionTime": now_text(),
            "observedGeneration": meta.generation,
        }
        await self._say(checkpoint, {"node": checkpoint.status.node}, condition)

    async def _leave(self, checkpoint: GpuCheckpoint) -> float | None:
        """The agent of its node takes the finalizer away, if there is one."""
        meta, node = checkpoint.metadata, checkpoint.status.node
        if names.STATE_FINALIZER not in meta.finalizers:
            return None
        if node:
            gone = await unanswered(self._client, node)
            if not gone:
                return NODE_GONE_SECONDS
            log.info("checkpoint %s/%s ends; it was on %s", meta.namespace, meta.name, gone)
        self._may_write()
        left = [it for it in meta.finalizers if it != names.STATE_FINALIZER]
        patch = {"metadata": {"resourceVersion": meta.resource_version, "finalizers": left}}
        try:
            await self._client.merge_patch(
                GPU_CHECKPOINTS, GpuCheckpoint, meta.name, patch, meta.namespace, manager=MANAGER
            )
        except (ApiNotFoundError, ConflictError):
            return 1.0
        return None

    async def _say(
        self, checkpoint: GpuCheckpoint, status: dict[str, Any], condition: dict[str, Any], *, first: bool = False
    ) -> None:
        """`first`: only where nothing was said of it yet: a cache that is behind must not undo an agent's word."""
        meta = checkpoint.metadata
        only_if = {"resourceVersion": meta.resource_version} if first else {}
        body = {
            "metadata": {"name": meta.name, "uid": meta.uid, **only_if},
            "status": {"observedGeneration": meta.generation, **status, "conditions": [condition]},
        }
        try:
            await self._client.apply(
                GPU_CHECKPOINTS, body, meta.namespace, manager=MANAGER, subresource="status", into=dict[str, Any]
            )
        except (ApiNotFoundError, ConflictError) as error:
            log.info("checkpoint %s/%s: the world has moved on: %s", meta.namespace, meta.name, error)

    def _tell(self, checkpoint: GpuCheckpoint, kind: Any, reason: str, message: str) -> None:
        self._recorder.record(Regarding.of(GPU_CHECKPOINTS, checkpoint), kind, reason, message)


def _ready(checkpoint: GpuCheckpoint, reason: str, message: str) -> dict[str, Any]:
    return {
        "type": "Ready",
        "status": "False",
        "reason": reason,
        "message": message,
        "lastTransitionTime": now_text(),
        "observedGeneration": checkpoint.metadata.generation,
    }


def _age(created: str) -> float:
    """Seconds since then, by our own clock."""
    try:
        return time.time() - datetime.fromisoformat(created).astimezone(UTC).timestamp()
    except ValueError:
        return 0.0
