"""GpuCheckpoint: a named, lasting, immutable copy of an instance or of a managed pod, awake or asleep.

A checkpoint is the processes' images, the diff of the container's writable layer, its emptyDirs, /dev/shm, the image's
digest and the list of mounts; volumes of other kinds are referenced, not copied. It lies in the store of the node
where it was taken, and is restored there.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from kybernate.api.kind import Name, Rule, says
from kybernate.api.names import API_VERSION
from kybernate.api.objects import Conditions, Metadata, Object
from kybernate.api.quantity import Duration
from kybernate.api.resource import AGE, Column, CustomResource

CheckpointPhase = Literal["Pending", "Running", "Ready", "Failed", "Expired"]


class CheckpointSource(Object, kw_only=True):
    """What is copied: exactly one of the two, in the checkpoint's own namespace."""

    rules: ClassVar = (Rule("has(self.instance) != has(self.pod)", "expected one of instance and pod"),)

    instance: Annotated[Name, says("A GpuInstance.")] = ""
    pod: Annotated[Name, says("A pod that is managed.")] = ""


class CheckpointSpec(Object, kw_only=True):
    """What is wanted. It never changes: a checkpoint is what it was made as."""

    rules: ClassVar = (Rule("self == oldSelf", "is immutable: make another GpuCheckpoint"),)

    source: CheckpointSource
    leave_running: Annotated[
        bool, says("What is awake runs on after the copy; false: its pod is deleted once the checkpoint is Ready.")
    ] = True
    expires_after: Annotated[
        Duration | None, says("It is given up so long after it became Ready. Absent: it stays.")
    ] = None
    deletion_policy: Annotated[
        Literal["Delete", "Retain"],
        says("What becomes of the bytes on the node when the object is deleted or expires."),
    ] = "Delete"


class CheckpointStatus(Object, kw_only=True):
    """What became of it."""

    observed_generation: Annotated[int, says("Of the spec that this status is about.")] = 0
    phase: Annotated[
        CheckpointPhase | None,
        says(
            "Pending: the node's agent has not begun; Running: it copies; Ready: complete and verified; Failed: there "
            "is no copy, and the condition says why; Expired: its bytes are gone."
        ),
    ] = None
    manifest: Annotated[str, says("The manifest's id in the store.")] = ""
    size_bytes: Annotated[int, says("Bytes of the copy.")] = 0
    frozen_seconds: Annotated[float, says("How long the source stood still for it.")] = 0.0
    node: Annotated[str, says("The node where it lies.", max_length=253)] = ""
    image: Annotated[str, says("The container's image.")] = ""
    image_digest: Annotated[str, says("Its digest: a restore wants the same.")] = ""
    criu: Annotated[str, says("The version of CRIU that wrote it.")] = ""
    architecture: Annotated[str, says("Of the processor: amd64, arm64.")] = ""
    conditions: Conditions = msgspec.field(default_factory=list)


class GpuCheckpoint(Object, kw_only=True):
    """A named, lasting, immutable copy of an instance or a managed pod, from which new pods can be restored."""

    api_version: str = msgspec.field(default_factory=lambda: API_VERSION)
    kind: str = msgspec.field(default_factory=lambda: "GpuCheckpoint")
    metadata: Metadata
    spec: CheckpointSpec
    status: CheckpointStatus = msgspec.field(default_factory=CheckpointStatus)


RESOURCE = CustomResource(
    GpuCheckpoint,
    "gpucheckpoints",
    "gck",
    (
        Column("Phase", ".status.phase", "How far it is."),
        Column("Instance", ".spec.source.instance", "The instance that it is a copy of."),
        Column("Pod", ".spec.source.pod", "The pod that it is a copy of.", wide=True),
        Column("Node", ".status.node", "Where it lies."),
        Column("Bytes", ".status.sizeBytes", "How big it is.", type="integer"),
        Column("Frozen", ".status.frozenSeconds", "Seconds that its source stood still.", type="number"),
        Column("Image", ".status.image", "The container's image.", wide=True),
        AGE,
    ),
    selectable=(".status.node",),
)
