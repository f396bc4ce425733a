"""GpuNode: what a node can do and how full it is, written by the node's agent; called as the Node is, and owned by it.

It is written when the agent starts, and again when what it says has changed noticeably.

The controller places instances by it: one whose condition Ready is False, or whose store is full, gets no new instance.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from kybernate.api.kind import says
from kybernate.api.names import API_VERSION
from kybernate.api.objects import Conditions, Metadata, Object
from kybernate.api.resource import AGE, Column, CustomResource, ready


class TierUsage(Object, kw_only=True):
    """How big a tier is, and how much of it is used."""

    capacity: Annotated[str, says("What it can hold, as a quantity, rounded: 93Gi.")] = ""
    used: Annotated[str, says("What it holds, and whatever else lies on its disk.")] = ""
    free: Annotated[str, says("What is left.")] = ""


class NodeTiers(Object, kw_only=True):
    """Where the node can keep state."""

    nvme: Annotated[TierUsage | None, says("The store on the node's disk, where parked instances lie.")] = (
        msgspec.field(default=None, name="NVME")
    )


class Capabilities(Object, kw_only=True):
    """What the node has to suspend and park with."""

    criu: Annotated[str, says("CRIU's version; empty: it cannot park.")] = ""
    runc: Annotated[str, says("runc's version.")] = ""
    kernel: Annotated[str, says("The kernel's release.")] = ""
    cgroup: Annotated[str, says("v1 or v2.")] = ""
    hold: Annotated[str, says("How calls to a parked instance are held: NFQUEUE; empty: not at all.")] = ""


class NodeStatus(Object, kw_only=True):
    """What the agent of the node observed."""

    observed_generation: Annotated[int, says("Of the object.")] = 0
    tiers: NodeTiers | None = None
    capabilities: Capabilities | None = None
    instances: Annotated[int, says("Instances whose state lies on this node, awake or asleep.")] = 0
    conditions: Conditions = msgspec.field(default_factory=list)


class GpuNode(Object, kw_only=True):
    """A node as Kybernate sees it. Written by the node's agent."""

    api_version: str = msgspec.field(default_factory=lambda: API_VERSION)
    kind: str = msgspec.field(default_factory=lambda: "GpuNode")
    metadata: Metadata
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)


RESOURCE = CustomResource(
    GpuNode,
    "gpunodes",
    "gn",
    (
        ready("Instances can be placed here."),
        Column("Instances", ".status.instances", "Whose state lies here.", type="integer"),
        Column("NVMe-Used", ".status.tiers.NVME.used", "What lies on the store's disk."),
        Column("NVMe-Capacity", ".status.tiers.NVME.capacity", "What that disk can hold."),
        Column("NVMe-Free", ".status.tiers.NVME.free", "What is left there.", wide=True),
        Column("CRIU", ".status.capabilities.criu", "CRIU's version.", wide=True),
        Column("runc", ".status.capabilities.runc", "runc's version.", wide=True),
        Column("Kernel", ".status.capabilities.kernel", "The kernel's release.", wide=True),
        Column("Cgroup", ".status.capabilities.cgroup", "v1 or v2.", wide=True),
        AGE,
    ),
    namespaced=False,
)
