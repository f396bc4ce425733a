"""What the store knows of a checkpoint, and what a GpuCheckpoint's status says of it. Pure.

A copy is `checkpoint-<uid>` in the store: the ids of a cluster's instances have a dot, so none is ever called
so. The manifest's id adds its seal: whoever names it means exactly these images.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kybernate.api.gpucheckpoint import CheckpointStatus, GpuCheckpoint
from kybernate.api.objects import Condition
from kybernate.errors import InvalidError
from kybernate.store import Manifest
from kybernate_agent.cluster.status import when

PREFIX = "checkpoint-"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
LONGEST_MESSAGE = 32768  # what the API server takes


class ManifestIdError(InvalidError):
    """{text!r} is no id of a GpuCheckpoint's manifest."""


class Made(msgspec.Struct, kw_only=True):
    """Of the manifest's `made`, what is told or compared again. The manifest's seal covers it."""

    namespace: str
    checkpoint: str
    container: str
    image: str = ""
    image_digest: str = ""
    criu: str = ""
    architecture: str = ""
    created_at: float = 0.0
    frozen_seconds: float = 0.0


def name_of(checkpoint: GpuCheckpoint) -> str:
    return PREFIX + checkpoint.metadata.uid


def id_of_manifest(manifest: Manifest) -> str:
    return f"{manifest.instance}@{manifest.mac}"


def parts_of(text: str) -> tuple[str, str]:
    """Name and seal. Raises ManifestIdError for what is no copy's."""
    name, _, seal = text.partition("@")
    if not name.startswith(PREFIX) or not seal or "." in name or "/" in name:
        raise ManifestIdError(text=text)
    return name, seal


def made_of(manifest: Manifest) -> Made:
    """Raises ManifestIdError for images that were not made as a checkpoint."""
    try:
        return msgspec.convert(manifest.made, Made)
    except msgspec.MsgspecError as error:
        raise ManifestIdError(text=manifest.instance) from error


def running(checkpoint: GpuCheckpoint) -> CheckpointStatus:
    return _status(checkpoint, "Running", "Copying", "its node's agent copies it")


def ready(checkpoint: GpuCheckpoint, manifest: Manifest) -> CheckpointStatus:
    made = made_of(manifest)
    status = _status(checkpoint, "Ready", "Complete", "")
    status.conditions[0].status = "True"
    status.conditions[0].last_transition_time = when(made.created_at)
    status.manifest, status.size_bytes = id_of_manifest(manifest), manifest.size_bytes
    status.frozen_seconds = round(made.frozen_seconds, 3)
    status.image, status.image_digest = made.image, made.image_digest
    status.criu, status.architecture = made.criu, ARCHITECTURES.get(made.architecture, made.architecture)
    return status


def failed(checkpoint: GpuCheckpoint, reason: str, message: str) -> CheckpointStatus:
    return _status(checkpoint, "Failed", reason, message)


def expired(checkpoint: GpuCheckpoint, bytes_gone: bool) -> CheckpointStatus:
    rest = "its bytes are gone" if bytes_gone else "its bytes stay on the node"
    status = _status(checkpoint, "Expired", "Expired", f"spec.expiresAfter has passed; {rest}")
    old = checkpoint.status
    return msgspec.structs.replace(
        status, manifest=old.manifest, frozen_seconds=old.frozen_seconds, image=old.image,
        image_digest=old.image_digest, criu=old.criu, architecture=old.architecture,
    )  # fmt: skip


def expires_at(checkpoint: GpuCheckpoint, manifest: Manifest) -> float | None:
    """Seconds since 1970; None: never."""
    after = checkpoint.spec.expires_after
    return None if after is None else made_of(manifest).created_at + float(after)


def _status(checkpoint: GpuCheckpoint, phase: Any, reason: str, message: str) -> CheckpointStatus:
    generation = checkpoint.metadata.generation
    condition = Condition(
        type="Ready", status="False", reason=reason, message=message[:LONGEST_MESSAGE], observed_generation=generation
    )
    return CheckpointStatus(
        observed_generation=generation, phase=phase, node=checkpoint.status.node, conditions=[condition]
    )


def changed_at(status: CheckpointStatus, before: CheckpointStatus, now: float) -> CheckpointStatus:
    """The status with the time since when its condition is so."""
    condition = status.conditions[0]
    old = next((c for c in before.conditions if c.type == condition.type), None)
    if not condition.last_transition_time:
        same = old is not None and old.status == condition.status
        condition.last_transition_time = old.last_transition_time if old and same else when(now)
    return status


def reason_of(error: BaseException) -> str:
    """A word for the condition's reason."""
    fields: dict[str, Any] = getattr(error, "fields", {})
    code = str(fields.get("code") or type(error).__name__.removesuffix("Error"))
    return "".join(part[:1].upper() + part[1:] for part in code.replace("_", "-").split("-"))
