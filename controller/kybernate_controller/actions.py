"""What the controller can do, as data. Each names exactly what it is about (uid, version), so it cannot hit another.

Those with `final` true cannot be taken back (a pod, a state goes): they are decided once more on what the API server
itself says before they are done, never on a cache alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from kybernate.api.gpuworkload import WorkloadStatus


@dataclass(frozen=True)
class Event:
    """What a person is told about the workload, once the action is done."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True, kw_only=True)
class Action:
    """One write."""

    final: ClassVar[bool] = False

    event: Event | None = None

    def __str__(self) -> str:
        """In a log."""
        about = getattr(self, "name", "") or getattr(self, "template_hash", "")
        return f"{type(self).__name__} {about}".rstrip()


@dataclass(frozen=True, kw_only=True)
class CheckTemplate(Action):
    """Ask the API server, by a dry run, whether a pod can be made of the template."""

    template_hash: str
    pod: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class CreatePod(Action):
    """A new pod for an ordinal."""

    name: str
    ordinal: int
    pod: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class AdoptPod(Action):
    """Make the workload the owner of a pod that has none."""

    name: str
    uid: str
    owners: list[dict[str, Any]] = field(repr=False)
    """All of them, the present ones too."""


@dataclass(frozen=True, kw_only=True)
class DeletePod(Action):
    """End a pod. With `keeps_state` it is first marked as disrupted, so that the agent keeps what sleeps."""

    final: ClassVar[bool] = True

    name: str
    uid: str
    keeps_state: bool


@dataclass(frozen=True, kw_only=True)
class ApplyInstance(Action):
    """Write the intent of a GpuInstance. `uid` and `resource_version` are empty for a new one."""

    name: str
    uid: str
    resource_version: str
    body: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class StartAnew(ApplyInstance):
    """Write the intent of a GpuInstance that gives its lost state up."""

    final: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class LeaveNode(ApplyInstance):
    """Write the intent of a GpuInstance that is no longer where it was: nothing is kept there."""

    final: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class DeleteInstance(Action):
    """End an instance and its state: the agent does it, and takes the finalizer away."""

    final: ClassVar[bool] = True

    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class ReleaseInstance(Action):
    """Take the finalizer away where there is no agent that could."""

    final: ClassVar[bool] = True

    name: str
    uid: str
    resource_version: str
    finalizers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SetServing(Action):
    """Say by the readiness gate whether calls may be led to a pod."""

    name: str
    uid: str
    serving: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class ResizePod(Action):
    """Set the CPU and memory requests of a container in place."""

    name: str
    uid: str
    container: str
    requests: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class WriteStatus(Action):
    """Say what is. Left for the end: one write says all that the actions before it changed."""

    uid: str
    status: WorkloadStatus
    events: tuple[Event, ...] = ()
