"""Doing: one write, or a few that belong together, for each kind of action, and what its failures mean.

An action names the object's uid, so an answer like "no such object" or "another one" means that the world has moved
on: the next look tells how. What the API server gives back goes into the caches, so that the next look sees it. A
refusal becomes a finding, which the plan takes into account, instead of an error that is tried again for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.kube.cache import Key
from kybernate.kube.client import Client
from kybernate.kube.connection import Request
from kybernate.kube.errors import (
    AlreadyExistsError,
    ApiError,
    ApiInvalidError,
    ApiNotFoundError,
    ConflictError,
    ForbiddenError,
    KindMissingError,
)
from kybernate.kube.resource import GPU_INSTANCES, GPU_WORKLOADS, PODS
from kybernate_controller import actions
from kybernate_controller.caches import Caches
from kybernate_controller.known import Known
from kybernate_controller.objects import DISRUPTION_TARGET, Instance, Pod, controller_of

log = logging.getLogger("kybernate_controller")

MANAGER = names.CONTROLLER_MANAGER
MOVED_ON = (ApiNotFoundError, ConflictError)
REFUSED = (ApiInvalidError, ForbiddenError)


@dataclass
class Target:
    """The workload that is worked on, and where answers go."""

    key: Key
    known: Known
    caches: Caches
    now: Callable[[], str]


class Doer:
    """Performs actions. Every method raises ApiError where the API server could not be asked, or would not."""

    def __init__(self, client: Client, may_write: Callable[[], None] = lambda: None) -> None:
        """`may_write` raises where we no longer lead."""
        self._client = client
        self._may_write = may_write

    async def do(self, action: actions.Action, target: Target) -> bool:
        """Whether it was done: False where the world has moved on, or the API server refuses."""
        self._may_write()
        try:
            return await self._do(action, target)
        except MOVED_ON as error:
            log.info("%s: %s: the world has moved on: %s", target.key, action, error)
            await self._look_again(action, target)
            return False

    async def _do(self, action: actions.Action, target: Target) -> bool:
        match action:
            case actions.CheckTemplate():
                return await self._check_template(action, target)
            case actions.CreatePod():
                return await self._create_pod(action, target)
            case actions.AdoptPod():
                await self._adopt_pod(action, target)
            case actions.DeletePod():
                await self._delete_pod(action, target)
            case actions.ApplyInstance():
                return await self._apply_instance(action, target)
            case actions.DeleteInstance():
                await self._client.delete(GPU_INSTANCES, action.name, target.key.namespace, uid=action.uid)
                target.known.ended.add(action.uid)
            case actions.ReleaseInstance():
                await self._release_instance(action, target)
            case actions.SetServing():
                await self._set_serving(action, target)
            case actions.ResizePod():
                return await self._resize_pod(action, target)
            case actions.WriteStatus():
                await self._write_status(action, target)
        return True

    async def _check_template(self, action: actions.CheckTemplate, target: Target) -> bool:
        metadata = {key: value for key, value in action.pod["metadata"].items() if key != "name"}
        body = action.pod | {"metadata": metadata | {"generateName": f"{target.key.name}-try-"}}
        path = PODS.path(target.key.namespace)
        # Strict: the CRD keeps a template as it is written, so this is where a slip in it is seen.
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        request = Request("POST", "try", path, str(PODS), query, msgspec.json.encode(body))
        try:
            await self._client.request(request)
        except REFUSED as error:
            if not _about_quota(error):
                target.known.refuse_template(action.template_hash, _said(error))
                return False
        target.known.accept_template(action.template_hash)
        return True

    async def _create_pod(self, action: actions.CreatePod, target: Target) -> bool:
        try:
            made = await self._client.create(PODS, action.pod, target.key.namespace, into=Pod)
        except AlreadyExistsError:
            await self._who_has(action.pod["metadata"]["name"], action.ordinal, target)
            return False
        except REFUSED as error:
            target.known.refuse_pod(action.ordinal, _said(error))
            return False
        target.caches.pods.absorb(made)
        target.known.make(made.metadata.name)
        return True

    async def _who_has(self, name: str, ordinal: int, target: Target) -> None:
        """A pod of that name exists, which our cache does not show: ours, or a stranger's."""
        pod = await self._client.get(PODS, Pod, name, target.key.namespace)
        if pod.metadata.labels.get(names.WORKLOAD) == target.key.name:
            target.caches.pods.absorb(pod)
            return
        owner = controller_of(pod.metadata)
        whose = f"a pod of the {owner.kind} {owner.name}" if owner else "a pod that is nobody's"
        target.known.take(ordinal, whose)

    async def _adopt_pod(self, action: actions.AdoptPod, target: Target) -> None:
        patch = {"metadata": {"uid": action.uid, "ownerReferences": action.owners}}
        namespace = target.key.namespace
        pod = await self._client.merge_patch(PODS, Pod, action.name, patch, namespace, manager=MANAGER)
        target.caches.pods.absorb(pod)

    async def _delete_pod(self, action: actions.DeletePod, target: Target) -> None:
        if action.keeps_state:
            condition = {"type": DISRUPTION_TARGET, "status": "True", "reason": "Kybernate"}
            await self._set_condition(target, action, condition, f"{MANAGER}-disruption")
        await self._client.delete(PODS, action.name, target.key.namespace, uid=action.uid)
        target.known.ended.add(action.uid)

    async def _apply_instance(self, action: actions.ApplyInstance, target: Target) -> bool:
        """An apply creates, or changes what is there; where a new one is meant it must not move another's fence."""
        if not action.uid:
            try:
                existing = await self._client.get(GPU_INSTANCES, Instance, action.name, target.key.namespace)
            except ApiNotFoundError:
                pass
            else:
                target.caches.instances.absorb(existing)
                return False
        written = await self._client.apply(GPU_INSTANCES, action.body, manager=MANAGER, into=Instance)
        target.caches.instances.absorb(written)
        return True

    async def _release_instance(self, action: actions.ReleaseInstance, target: Target) -> None:
        metadata: dict[str, Any] = {"uid": action.uid, "resourceVersion": action.resource_version}
        patch = {"metadata": metadata | {"finalizers": list(action.finalizers) or None}}
        namespace = target.key.namespace
        await self._client.merge_patch(GPU_INSTANCES, Instance, action.name, patch, namespace, manager=MANAGER)
        target.known.gone.add(action.uid)

    async def _set_serving(self, action: actions.SetServing, target: Target) -> None:
        condition = {"type": names.SERVING, "status": str(action.serving), "reason": action.reason}
        await self._set_condition(target, action, condition, MANAGER)

    async def _set_condition(
        self,
        target: Target,
        action: actions.DeletePod | actions.SetServing,
        condition: dict[str, str],
        manager: str,
    ) -> None:
        """One condition of a pod, by server-side apply, which leaves those of the kubelet alone.

        `manager` is one for each condition: what one apply does not name is taken away from what that manager wrote.
        """
        body = {
            "metadata": {"name": action.name, "uid": action.uid},
            "status": {"conditions": [condition | {"lastTransitionTime": target.now()}]},
        }
        namespace = target.key.namespace
        pod = await self._client.apply(PODS, body, namespace, manager=manager, subresource="status", into=Pod)
        target.caches.pods.absorb(pod)

    async def _resize_pod(self, action: actions.ResizePod, target: Target) -> bool:
        container = {"name": action.container, "resources": {"requests": action.requests}}
        body = {"metadata": {"name": action.name, "uid": action.uid}, "spec": {"containers": [container]}}
        try:
            pod = await self._client.apply(
                PODS, body, target.key.namespace, manager=MANAGER, subresource="resize", into=Pod
            )
        except KindMissingError:
            target.known.refuse_resize(action.uid, "this cluster cannot resize pods in place", lasting=True)
            return False
        except REFUSED as error:
            target.known.refuse_resize(action.uid, _said(error))
            return False
        target.caches.pods.absorb(pod)
        return True

    async def _write_status(self, action: actions.WriteStatus, target: Target) -> None:
        body = {"metadata": {"name": target.key.name, "uid": action.uid}, "status": _status(action)}
        written = await self._client.apply(
            GPU_WORKLOADS, body, target.key.namespace, manager=MANAGER, subresource="status", into=GpuWorkloadObject
        )
        target.caches.workloads.absorb(written)
        target.known.said()

    async def _look_again(self, action: actions.Action, target: Target) -> None:
        """Read what the action was about, so that the next look does not stumble over the same stale object."""
        namespace = target.key.namespace
        try:
            match action:
                case actions.ApplyInstance() | actions.ReleaseInstance() | actions.DeleteInstance():
                    instance = await self._client.get(GPU_INSTANCES, Instance, action.name, namespace)
                    target.caches.instances.absorb(instance)
                case actions.SetServing() | actions.ResizePod() | actions.AdoptPod() | actions.DeletePod():
                    target.caches.pods.absorb(await self._client.get(PODS, Pod, action.name, namespace))
        except ApiNotFoundError:
            if uid := getattr(action, "uid", ""):
                target.known.gone.add(uid)


def _status(action: actions.WriteStatus) -> dict[str, Any]:
    """The status with all its fields: `kubectl get` shows a count that is not there as nothing, not as zero."""
    status = action.status
    return {
        "observedGeneration": status.observed_generation,
        "replicas": status.replicas,
        "updatedReplicas": status.updated_replicas,
        "awake": status.awake,
        "suspended": status.suspended,
        "parked": status.parked,
        "selector": status.selector,
        "conditions": [
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
                "lastTransitionTime": condition.last_transition_time,
                "observedGeneration": condition.observed_generation,
            }
            for condition in status.conditions
        ],
    }


def _said(error: ApiError) -> str:
    return str(error.problem)


def _about_quota(error: ApiError) -> bool:
    """A quota says nothing about the template: the pod that it replaces may make room."""
    return isinstance(error, ForbiddenError) and "exceeded quota" in _said(error)
