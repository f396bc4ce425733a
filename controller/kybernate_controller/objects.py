"""What the controller reads of a cluster's objects: only the fields that some decision needs.

Ten thousand of each are held at once, so every field here costs; nothing is kept for later.
"""

from __future__ import annotations

import msgspec

from kybernate.api.gpuinstance import InstanceSpec
from kybernate.api.objects import Object, OwnerReference

AWAKE = "-"
RAM = "RAM"
NVME = "NVME"
STATE_LOST = "StateLost"
WAITING = "Waiting"

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""The taint by which a person says that a node is down and stays so."""
DISRUPTION_TARGET = "DisruptionTarget"
"""The pod condition that tells an eviction, which keeps an instance's state, from a deletion, which gives it up."""


class Meta(Object, kw_only=True):
    """An object's metadata."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    deletion_timestamp: str | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    owner_references: list[OwnerReference] = msgspec.field(default_factory=list)
    finalizers: list[str] = msgspec.field(default_factory=list)


class ObjectCondition(Object, kw_only=True):
    """A condition of a pod or a node."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class Resources(Object, kw_only=True):
    """As written: quantities are text."""

    requests: dict[str, str] = msgspec.field(default_factory=dict)
    limits: dict[str, str] = msgspec.field(default_factory=dict)


class ResizePolicy(Object, kw_only=True):
    """Whether a changed amount needs a restart of the container."""

    resource_name: str
    restart_policy: str


class PodContainer(Object, kw_only=True):
    """A container as the pod asks for it."""

    name: str
    resources: Resources = msgspec.field(default_factory=Resources)
    resize_policy: list[ResizePolicy] = msgspec.field(default_factory=list)


class ReadinessGate(Object, kw_only=True):
    """A condition without which the pod is not Ready."""

    condition_type: str


class PodSpec(Object, kw_only=True):
    """What is wanted of a pod."""

    node_name: str = ""
    containers: list[PodContainer] = msgspec.field(default_factory=list)
    readiness_gates: list[ReadinessGate] = msgspec.field(default_factory=list)


class Waiting(Object, kw_only=True):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class ContainerState(Object, kw_only=True):
    """Of its three states only the one that tells of trouble."""

    waiting: Waiting | None = None


class ContainerStatus(Object, kw_only=True):
    """A container as the kubelet sees it."""

    name: str = ""
    state: ContainerState = msgspec.field(default_factory=ContainerState)


class PodStatus(Object, kw_only=True):
    """What has become of a pod."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    qos_class: str = ""
    conditions: list[ObjectCondition] = msgspec.field(default_factory=list)
    container_statuses: list[ContainerStatus] = msgspec.field(default_factory=list)
    init_container_statuses: list[ContainerStatus] = msgspec.field(default_factory=list)


class Pod(Object, kw_only=True):
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
    def terminal(self) -> bool:
        return self.status.phase in ("Failed", "Succeeded")


class Taint(Object, kw_only=True):
    """Why pods should not be on a node."""

    key: str


class NodeSpec(Object, kw_only=True):
    """What a person said about a node."""

    unschedulable: bool = False
    taints: list[Taint] = msgspec.field(default_factory=list)


class NodeStatus(Object, kw_only=True):
    """What its kubelet, or the lack of it, says."""

    conditions: list[ObjectCondition] = msgspec.field(default_factory=list)


class Node(Object, kw_only=True):
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


class InstanceStatus(Object, kw_only=True):
    """Of what the agent observed, what decisions need."""

    observed_generation: int = 0
    state: str = ""
    tier: str = ""
    node_name: str = ""
    pod_uid: str = msgspec.field(name="podUID", default="")


class Instance(Object, kw_only=True):
    """A GpuInstance."""

    metadata: Meta
    spec: InstanceSpec
    status: InstanceStatus = msgspec.field(default_factory=InstanceStatus)


def controller_of(metadata: Meta) -> OwnerReference | None:
    """Who manages the object; None for an orphan."""
    return next((owner for owner in metadata.owner_references if owner.controller), None)


def slim_node(node: Node) -> Node:
    """Heartbeats, sizes and labels are not looked at."""
    node.metadata.labels = {}
    node.metadata.annotations = {}
    node.status.conditions = [c for c in node.status.conditions if c.type == "Ready"]
    return node
