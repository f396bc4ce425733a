"""GpuWorkload: what a person writes to have a workload that sleeps while nobody calls, and keeps its state.

The fields here are those that work; the rest of the API is refused by name, so that nothing which is written in a
manifest is silently without effect. Each field is defined once, and the kind is read in two ways:

    GpuWorkload        what `manifest.load` takes without a cluster: strict, with the pod template that runs there
      ^ extended by
    GpuWorkloadObject  what a cluster holds, with its status: the CRD is made of it, and controller and CLI read it.
                       Fields that they don't know are passed over, the template is kept as bytes
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from kybernate.api.gpuinstance import State
from kybernate.api.kind import NOT_YET, UNIQUE, WITHOUT_CLUSTER, Fields, Label, Port, Rule, says
from kybernate.api.names import API_VERSION
from kybernate.api.objects import Conditions, Metadata, Object
from kybernate.api.pod import Container, ObjectMeta, PodTemplateSpec
from kybernate.api.quantity import Duration
from kybernate.api.resource import AGE, Column, CustomResource, Scale, ready
from kybernate.api.template import PodTemplate


def _later(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, NOT_YET)


def _in_a_cluster(*names: str) -> dict[str, str]:
    """Fields that an extension of the type below adds."""
    return dict.fromkeys(names, WITHOUT_CLUSTER)


def _seconds(number: float) -> Duration:
    """A default; by a factory, because msgspec can make no schema of a default that it cannot encode itself."""
    default: Duration = msgspec.field(default_factory=lambda: Duration(number))
    return default


class Idle(Fields, frozen=True, kw_only=True):
    """When an instance goes to sleep. A step whose time is absent is never taken."""

    refused: ClassVar = _later("archiveAfter") | _in_a_cluster("minAwake", "releaseRequests")

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

    refused: ClassVar = _later("schedule") | _in_a_cluster("targetInFlight")

    timeout: Annotated[Duration, says("A call that waited so long for a wake is reset.")] = _seconds(120)
    on_exec: Annotated[bool, says("`exec` wakes; false: it is refused while the instance sleeps.")] = True


class GpuWorkloadSpec(Fields, frozen=True, kw_only=True):
    """What is wanted."""

    refused: ClassVar = _later("gpu", "hooks", "priority", "saveGames", "startFrom") | _in_a_cluster(
        "state", "traffic", "onStateLost", "rollout"
    )

    replicas: Annotated[int, says("Instances that exist, awake or asleep. Without a cluster: 1.", ge=0)] = 1
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


class WorkloadIdle(Idle, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=True):
    """When an instance goes to sleep. A step whose time is absent is never taken."""

    rules: ClassVar = (
        Rule("!has(self.parkAfter) || has(self.suspendAfter)", "needs suspendAfter", ".parkAfter"),
        Rule(
            "!has(self.suspendAfter) || duration(self.suspendAfter) > duration('0s')",
            "expected more than 0",
            ".suspendAfter",
        ),
    )

    ports: (
        Annotated[
            tuple[Port, ...],
            says(
                "TCP ports whose callers wake the instance; absent: the containerPorts of the container that sleeps.",
                max_length=64,
                extra_json_schema=UNIQUE,
            ),
        ]
        | None
    ) = None
    min_awake: Annotated[int, says("So many of the instances never go to sleep by themselves.", ge=0)] = 0
    release_requests: Annotated[
        bool,
        says(
            "A parked pod of QoS class Burstable lowers its CPU and memory requests, never to zero, where the cluster "
            "can resize in place; a wake raises them again without waiting for it. Guaranteed and BestEffort pods "
            "keep theirs."
        ),
    ] = True


class WorkloadWake(Wake, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=True):
    """How a sleeping instance comes back."""

    rules: ClassVar = (
        Rule("!has(self.timeout) || duration(self.timeout) > duration('0s')", "expected more than 0", ".timeout"),
    )

    target_in_flight: (
        Annotated[
            int,
            says(
                "When each instance that is awake has so many requests in flight, as a mean of ten seconds, one more "
                "is woken; when all have fewer than a quarter of that for ten seconds, one leaves the Service and may "
                "go to sleep. A connection counts as one request at most. Absent: one awake instance takes all it can.",
                ge=1,
            ),
        ]
        | None
    ) = None


class Rollout(Fields, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=True):
    """How instances take a changed template."""

    max_unavailable: Annotated[int, says("At most so many instances are replaced at a time.", ge=1)] = 1
    sleeping: Annotated[
        Literal["OnWake", "Now"],
        says(
            "When an instance that sleeps takes the changed template. It starts anew then: its state is given up, "
            "which an event says. OnWake: when it is called next; Now: with the others."
        ),
    ] = "OnWake"


_LISTENS = "has(c.ports) && c.ports.exists(p, !has(p.protocol) || p.protocol == 'TCP')"
_PRIVILEGED = "has(c.securityContext) && has(c.securityContext.privileged) && c.securityContext.privileged"


def _sleeper(what: str) -> str:
    """CEL: `what` holds of `c`, the container that sleeps."""
    return f"self.template.spec.containers.exists(c, (!has(self.containers) || c.name in self.containers) && {what})"


class WorkloadSpec(GpuWorkloadSpec, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=True):
    """What is wanted of the workload: how many instances of which pod, and when they sleep and wake."""

    rules: ClassVar = (
        Rule(
            "!has(self.containers) || self.template.spec.containers.exists(c, c.name in self.containers)",
            "no container of the template is called so",
            ".containers",
        ),
        Rule(
            "has(self.containers) || size(self.template.spec.containers) == 1",
            "name the container that sleeps: the template has several",
            ".containers",
        ),
        Rule(
            "!has(self.idle.suspendAfter) || "
            f"(has(self.idle.ports) ? size(self.idle.ports) > 0 : {_sleeper(_LISTENS)})",
            "needs a port that can wake it: idle.ports, or a containerPort (TCP) in the template",
            ".idle.suspendAfter",
        ),
        Rule(
            "!has(self.wake.targetInFlight) || has(self.idle.suspendAfter)",
            "needs idle.suspendAfter: who is no longer needed goes to sleep by itself",
            ".wake.targetInFlight",
        ),
        Rule(
            "!has(self.wake.targetInFlight) || self.traffic == 'Pack'",
            "needs traffic: Pack. With Spread a call to a sleeper wakes it, whatever the others have to do",
            ".wake.targetInFlight",
        ),
        Rule(
            f"!{_sleeper(_PRIVILEGED)}",
            "the container that sleeps is privileged: it reaches the host, so its state is not its own to keep",
            ".template.spec.containers",
        ),
    )

    replicas: Annotated[int, says("Instances that exist, awake or asleep.", ge=0, le=100_000)] = 1
    # Ten thousand of them are held, so the template stays JSON until somebody needs it.
    template: Annotated[msgspec.Raw, msgspec.Meta(extra={"shape": PodTemplate})]  # type: ignore[assignment]
    containers: (
        Annotated[
            tuple[Label, ...],
            says("The container that sleeps; absent: the template's only one.", min_length=1, max_length=1),
        ]
        | None
    ) = None
    idle: WorkloadIdle = msgspec.field(default_factory=WorkloadIdle)
    wake: WorkloadWake = msgspec.field(default_factory=WorkloadWake)
    on_terminate: Annotated[Literal["Drop"], says("Drop: a sleeping instance that is deleted ends without waking.")] = (
        "Drop"
    )
    state: Annotated[
        State,
        says(
            "What a person orders for all instances; it beats policy. Auto: policy decides. Running: awake, and "
            "stays so. Suspended, Parked: asleep there; calls do not wake it, they are reset at once."
        ),
    ] = "Auto"
    traffic: Annotated[
        Literal["Pack", "Spread"],
        says("Pack: sleepers stay out of the Service while another instance is awake; Spread: all stay in."),
    ] = "Pack"
    on_state_lost: Annotated[
        Literal["Hold", "Start"],
        says("When an instance's state is lost. Hold: wait for a person; Start: begin anew, and say so."),
    ] = "Hold"
    rollout: Rollout = Rollout()

    def __post_init__(self) -> None:
        """Raw is a view that would keep all of the answer in memory of which it is a part."""
        msgspec.structs.force_setattr(self, "template", self.template.copy())


class WorkloadStatus(Object, kw_only=True):
    """What is observed of the workload. Written by the controller."""

    observed_generation: Annotated[int, says("Of the spec that this status is about.")] = 0
    replicas: Annotated[int, says("Instances that exist.")] = 0
    updated_replicas: Annotated[int, says("Instances made of the present template.")] = 0
    awake: Annotated[int, says("Instances whose processes run.")] = 0
    suspended: Annotated[int, says("Instances that are frozen in memory.")] = 0
    parked: Annotated[int, says("Instances whose state is on disk, without processes.")] = 0
    selector: Annotated[str, says("Label selector of the pods, for the scale subresource.")] = ""
    conditions: Conditions = msgspec.field(default_factory=list)


class GpuWorkloadObject(Object, kw_only=True):
    """A workload that gives back what it holds while nobody calls, and comes back where it left off."""

    rules: ClassVar = (
        Rule(
            "size(self.metadata.name) <= 57 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name: expected lower case letters, digits and '-', at most 57: instances are <name>-<ordinal>",
        ),
    )

    api_version: str = msgspec.field(default_factory=lambda: API_VERSION)
    kind: str = msgspec.field(default_factory=lambda: "GpuWorkload")
    metadata: Metadata
    spec: WorkloadSpec
    status: WorkloadStatus = msgspec.field(default_factory=WorkloadStatus)


RESOURCE = CustomResource(
    GpuWorkloadObject,
    "gpuworkloads",
    "gw",
    (
        ready("As many instances exist as are wanted, and each is well, awake or asleep."),
        Column("Desired", ".spec.replicas", "Instances that are wanted.", type="integer"),
        Column("Awake", ".status.awake", "Instances whose processes run.", type="integer"),
        Column("Suspended", ".status.suspended", "Instances frozen in memory.", type="integer"),
        Column("Parked", ".status.parked", "Instances on disk.", type="integer"),
        Column("Updated", ".status.updatedReplicas", "Of the present template.", type="integer", wide=True),
        Column("Order", ".spec.state", "What a person ordered for good.", wide=True),
        AGE,
    ),
    scale=Scale(".spec.replicas", ".status.replicas", ".status.selector"),
)
