"""GpuRestoreJob: a checkpoint restored as a new pod, once, on the node where the checkpoint lies."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from kybernate.api.kind import Name, Rule, ShortLabel, says
from kybernate.api.names import API_VERSION
from kybernate.api.objects import Conditions, Metadata, Object
from kybernate.api.resource import AGE, Column, CustomResource

RestorePhase = Literal["Pending", "Placing", "Restoring", "Succeeded", "Failed"]


class RestoreJobSpec(Object, kw_only=True):
    """What is wanted. It never changes: a job is done once."""

    rules: ClassVar = (Rule("self == oldSelf", "is immutable: make another GpuRestoreJob"),)

    checkpoint: Annotated[Name, says("A GpuCheckpoint in the same namespace.")]
    pod_name: Annotated[ShortLabel, says("What the new pod is called. No pod of that name may exist.")]


class RestoreSeconds(Object, kw_only=True):
    """How long each phase took."""

    placing: Annotated[float, says("Until the pod's container was created on the node.")] = 0.0
    restoring: Annotated[float, says("From there to running processes.")] = 0.0


class RestoreJobStatus(Object, kw_only=True):
    """What became of it."""

    observed_generation: Annotated[int, says("Of the spec that this status is about.")] = 0
    phase: Annotated[
        RestorePhase | None,
        says(
            "Pending: the checkpoint is not Ready yet; Placing: the pod is made, scheduled, its container created; "
            "Restoring: its processes come back; Succeeded: they run; Failed: the message says why."
        ),
    ] = None
    pod: Annotated[str, says("The pod that was made.")] = ""
    node: Annotated[str, says("Where it runs.", max_length=253)] = ""
    seconds: RestoreSeconds | None = None
    message: Annotated[str, says("Why it failed, or what it waits for.")] = ""
    conditions: Conditions = msgspec.field(default_factory=list)


class GpuRestoreJob(Object, kw_only=True):
    """Restores a GpuCheckpoint as a new pod, once. The pod outlives the job."""

    api_version: str = msgspec.field(default_factory=lambda: API_VERSION)
    kind: str = msgspec.field(default_factory=lambda: "GpuRestoreJob")
    metadata: Metadata
    spec: RestoreJobSpec
    status: RestoreJobStatus = msgspec.field(default_factory=RestoreJobStatus)


RESOURCE = CustomResource(
    GpuRestoreJob,
    "gpurestorejobs",
    "grj",
    (
        Column("Phase", ".status.phase", "How far it is."),
        Column("Checkpoint", ".spec.checkpoint", "What is restored."),
        Column("Pod", ".spec.podName", "The new pod."),
        Column("Node", ".status.node", "Where it runs."),
        Column("Message", ".status.message", "Why it failed, or what it waits for.", wide=True),
        AGE,
    ),
    selectable=(".status.node",),
)
