"""How far a restore is, as its pod and its GpuInstance show: a pure function."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from kybernate.api.gpuinstance import GpuInstance
from kybernate.api.gpurestorejob import RestoreJobStatus, RestorePhase
from kybernate.api.objects import Condition, Metadata, Object
from kybernate_controller.objects import ObjectCondition

TRY_SECONDS = 60.0
"""So long a restore that CRIU fails is tried again by the agent before the job gives up."""


class Waiting(Object, kw_only=True):
    """Why a container does not run yet."""

    message: str = ""


class ContainerState(Object, kw_only=True):
    waiting: Waiting | None = None


class ContainerStatus(Object, kw_only=True):
    state: ContainerState = msgspec.field(default_factory=ContainerState)


class PodStatus(Object, kw_only=True):
    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[ObjectCondition] = msgspec.field(default_factory=list)
    container_statuses: list[ContainerStatus] = msgspec.field(default_factory=list)


class Pod(Object, kw_only=True):
    """A pod that a job has made, or one that has its name."""

    metadata: Metadata
    status: PodStatus = msgspec.field(default_factory=PodStatus)


@dataclass(frozen=True)
class Seen:
    """All that it rests on; `now` in seconds since 1970."""

    status: RestoreJobStatus
    pod: Pod | None
    instance: GpuInstance | None
    now: float


@dataclass(frozen=True)
class Progress:
    phase: RestorePhase
    message: str = ""
    restoring_seconds: float = 0.0
    since_creation: float = 0.0
    again_seconds: float | None = None
    """When to look again, where nothing may change until then."""

    @property
    def failed(self) -> bool:
        return self.phase == "Failed"


def progress(seen: Seen) -> Progress:
    pod, instance = seen.pod, seen.instance
    if pod is None:
        return Progress("Failed", "its pod was deleted")
    if pod.metadata.deletion_timestamp is not None:
        return Progress("Failed", "its pod is being deleted")
    if pod.status.phase in ("Failed", "Succeeded"):
        return Progress("Failed", f"its pod is {pod.status.phase}: {pod.status.message or pod.status.reason}")
    if instance is None or instance.spec.pod_uid != pod.metadata.uid:
        return Progress("Failed", "its GpuInstance was deleted")
    status = instance.status
    for condition in status.conditions:
        if condition.type == "StateLost" and condition.status == "True":
            return Progress("Failed", condition.message)
    if status.pod_uid == pod.metadata.uid and status.last_wake is not None:
        passed = seen.now - _at(status.history[0].at, seen.now) if status.history else 0.0
        return Progress("Succeeded", "", status.last_wake.seconds, passed)
    for condition in status.conditions:
        if condition.type == "RestoreFailed" and condition.status == "True":
            return _failing(condition, seen)
    if status.pod_uid == pod.metadata.uid:
        return Progress("Restoring")
    return Progress("Placing", _why_not(pod))


def _failing(condition: Condition, seen: Seen) -> Progress:
    left = _at(condition.last_transition_time, seen.now) + TRY_SECONDS - seen.now
    if left <= 0:
        return Progress("Failed", condition.message)
    return Progress("Restoring", condition.message, again_seconds=left + 0.1)


def _why_not(pod: Pod) -> str:
    scheduled = next((c for c in pod.status.conditions if c.type == "PodScheduled"), None)
    if scheduled is not None and scheduled.status == "False":
        return scheduled.message
    for container in pod.status.container_statuses:
        if container.state.waiting is not None and container.state.waiting.message:
            return container.state.waiting.message
    return ""


def _at(text: str, fallback: float) -> float:
    try:
        return datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except ValueError:
        return fallback
