"""What the controller reads of a cluster's objects: only the fields that some decision needs.

Ten thousand of each are held at once, so every field here costs; nothing is kept for later. None of them is part of a
reference cycle, so the garbage collector need not look at them (`gc=False`).
"""

from __future__ import annotations

import msgspec

from kybernate.api import names
from kybernate.api.gpuinstance import InstanceSpec
from kybernate.api.objects import Object, OwnerReference

AWAKE = "-"
RAM = "RAM"
NVME = "NVME"
STATE_LOST = "StateLost"
WAITING = "Waiting"
FULL = "Full"
LOW = "Low"
RESTORE_FAILED = "RestoreFailed"
"""The GpuInstance's condition while a wake does not work."""

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""The taint by which a person says that a node is down and stays so."""
DISRUPTION_TARGET = "DisruptionTarget"
"""The pod condition that tells an eviction, which keeps an instance's state, from a deletion, which gives it up."""


class Meta(Object, kw_only=True, gc=False):
    """An object's metadata."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    deletion_timestamp: str | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()


class ObjectCondition(Object, kw_only=True, gc=False):
    """A condition of a pod, a node or a GpuInstance."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class Resources(Object, kw_only=True, gc=False):
    """As written: quantities are text."""

    requests: dict[str, str] = msgspec.field(default_factory=dict)


class ResizePolicy(Object, kw_only=True, gc=False):
    """Whether a changed amount needs a restart of the container."""

    resource_name: str
    restart_policy: str


class PodContainer(Object, kw_only=True, gc=False):
    """A container as the pod asks for it."""

    name: str
    resources: Resources = msgspec.field(default_factory=Resources)
    resize_policy: tuple[ResizePolicy, ...] = ()


class ReadinessGate(Object, kw_only=True, gc=False):
    """A condition without which the pod is not Ready."""

    condition_type: str


class PodSpec(Object, kw_only=True, gc=False):
    """What is wanted of a pod."""

    node_name: str = ""
    containers: tuple[PodContainer, ...] = ()
    readiness_gates: tuple[ReadinessGate, ...] = ()


class Waiting(Object, kw_only=True, gc=False):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class ContainerState(Object, kw_only=True, gc=False):
    """Of its three states only the one that tells of trouble."""

    waiting: Waiting | None = None


class ContainerStatus(Object, kw_only=True, gc=False):
    """A container as the kubelet sees it."""

    name: str = ""
    state: ContainerState = msgspec.field(default_factory=ContainerState)


class PodStatus(Object, kw_only=True, gc=False):
    """What has become of a pod."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    qos_class: str = ""
    conditions: tuple[ObjectCondition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(Object, kw_only=True, gc=False):
    """A pod that carries the label kybernate.io/workload."""

    metadata: Meta
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)

    def condition(self, kind: str) -> ObjectCondition | None:
        return next((c for c in self.status.conditions if c.type == kind), None)

    def holds(self, kind: str) -> bool:
        """Whether it has the condition `kind`, and that is True."""
        found = self.condition(kind)
        return found is not None and found.status == "True"

    @property
    def gated(self) -> bool:
        """Whether it can be taken out of a Service: gates cannot be added to a pod."""
        return any(gate.condition_type == names.SERVING for gate in self.spec.readiness_gates)

    @property
    def terminal(self) -> bool:
        return self.status.phase in ("Failed", "Succeeded")


class Taint(Object, kw_only=True, gc=False):
    """Why pods should not be on a node."""

    key: str


class NodeSpec(Object, kw_only=True, gc=False):
    """What a person said about a node."""

    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()


class NodeStatus(Object, kw_only=True, gc=False):
    """What its kubelet, or the lack of it, says."""

    conditions: tuple[ObjectCondition, ...] = ()


class Node(Object, kw_only=True, gc=False):
    """A node."""

    metadata: Meta
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)

    @property
    def ready(self) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)

    @property
    def out_of_service(self) -> bool:
        return any(taint.key == OUT_OF_SERVICE for taint in self.spec.taints)


class Store(Object, kw_only=True, gc=False):
    """Where a node keeps what is parked."""

    free: str = ""


class Tiers(Object, kw_only=True, gc=False):
    """Where a node can keep state."""

    nvme: Store | None = msgspec.field(name="NVME", default=None)


class GpuNodeStatus(Object, kw_only=True, gc=False):
    """What the agent of a node says of it."""

    tiers: Tiers | None = None
    conditions: tuple[ObjectCondition, ...] = ()


class GpuNode(Object, kw_only=True, gc=False):
    """A GpuNode."""

    metadata: Meta
    status: GpuNodeStatus = msgspec.field(default_factory=GpuNodeStatus)


class InstanceStatus(Object, kw_only=True, gc=False):
    """Of what the agent observed, what decisions need."""

    observed_generation: int = 0
    state: str = ""
    tier: str = ""
    node_name: str = ""
    pod_uid: str = msgspec.field(name="podUID", default="")
    load: str = ""
    conditions: tuple[ObjectCondition, ...] = ()

    @property
    def cannot_wake(self) -> ObjectCondition | None:
        """Why it stays asleep although it is called."""
        return next((c for c in self.conditions if c.type == RESTORE_FAILED and c.status == "True"), None)


class Instance(Object, kw_only=True, gc=False):
    """A GpuInstance."""

    metadata: Meta
    spec: InstanceSpec
    status: InstanceStatus = msgspec.field(default_factory=InstanceStatus)


def controller_of(metadata: Meta) -> OwnerReference | None:
    """Who manages the object; None for an orphan."""
    return next((owner for owner in metadata.owner_references if owner.controller), None)
