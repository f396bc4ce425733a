"""GpuWorkload: what a person writes to have a workload that sleeps while nobody calls, and keeps its state.

The fields here are those that work; the rest of the API is refused by name, so that nothing which is written in a
manifest is silently without effect.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from kybernate.api.kind import NOT_YET, Fields, Label, Port, says
from kybernate.api.pod import Container, ObjectMeta, PodTemplateSpec
from kybernate.api.quantity import Duration


def _later(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, NOT_YET)


def _seconds(number: float) -> Duration:
    """A default; by a factory, because msgspec can make no schema of a default that it cannot encode itself."""
    default: Duration = msgspec.field(default_factory=lambda: Duration(number))
    return default


class Idle(Fields, frozen=True, kw_only=True):
    """When an instance goes to sleep. A step whose time is absent is never taken."""

    refused: ClassVar = _later("archiveAfter", "minAwake", "releaseRequests")

    suspend_after: Annotated[
        Duration | None,
        says("Suspend (freeze in memory) after so long without traffic and without a request in flight."),
    ] = None
    park_after: Annotated[
        Duration | None, says("Park (to disk; memory is given back) so long after it was suspended.")
    ] = None
    drain_timeout: Annotated[
        Duration, says("How long a request in flight may hold back a suspend that a person orders. Going idle waits.")
    ] = _seconds(30)
    max_in_flight: Annotated[
        Duration, says("A request whose answer has not begun counts as in flight so long, however silent.")
    ] = _seconds(600)
    ports: Annotated[
        tuple[Port, ...] | None,
        says("TCP ports whose callers wake the instance; absent: the template's containerPorts."),
    ] = None


class Wake(Fields, frozen=True, kw_only=True):
    """How a sleeping instance comes back."""

    refused: ClassVar = _later("targetInFlight", "schedule")

    timeout: Annotated[Duration, says("A call that waited so long for a wake is reset.")] = _seconds(120)
    on_exec: Annotated[bool, says("`exec` wakes; false: it is refused while the instance sleeps.")] = True


class GpuWorkloadSpec(Fields, frozen=True, kw_only=True):
    """What is wanted."""

    refused: ClassVar = _later(
        "gpu", "traffic", "hooks", "priority", "onStateLost", "rollout", "saveGames", "startFrom", "state"
    )

    replicas: Annotated[int, says("Instances that exist, awake or asleep. Only 1 yet.", ge=0)] = 1
    template: Annotated[PodTemplateSpec, says("The pod that an instance is.")]
    containers: Annotated[
        tuple[Label, ...] | None, says("The container that sleeps; absent: the template's only one.")
    ] = None
    idle: Annotated[Idle, says("When it goes to sleep.")] = msgspec.field(default_factory=Idle)
    wake: Annotated[Wake, says("How it comes back.")] = msgspec.field(default_factory=Wake)
    on_terminate: Annotated[
        Literal["Drop", "Wake"], says("Drop: a sleeping instance that is deleted ends without waking. Only Drop yet.")
    ] = "Drop"


class GpuWorkload(Fields, frozen=True, kw_only=True):
    """A workload that gives back what it holds while nobody calls, and comes back where it left off."""

    refused: ClassVar = {"status": "is written by Kybernate, not by a person"}

    api_version: Annotated[Literal["kybernate.io/v1alpha1"], says("The API's group and version.")] = (
        "kybernate.io/v1alpha1"
    )
    kind: Annotated[Literal["GpuWorkload"], says("This kind.")] = "GpuWorkload"
    metadata: Annotated[ObjectMeta, says("Its name.")]
    spec: Annotated[GpuWorkloadSpec, says("What is wanted.")]

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def container(self) -> Container:
        """The container that sleeps and wakes."""
        return self.spec.template.spec.containers[0]

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP ports whose callers wake it, in the order written, each once."""
        if self.spec.idle.ports is not None:
            return self.spec.idle.ports
        return tuple(dict.fromkeys(port.container_port for port in self.container.ports))
