"""GpuInstance: one replica, what sleeps and wakes. Its id outlives its pods.

The controller writes `spec` (which pod is the instance now, on which node its state lies, what it may do by itself);
the agent of that node writes `status` (what is true). For an annotated pod that no GpuWorkload owns the agent itself
makes the object, owned by the pod.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kybernate.api.names import API_VERSION
from kybernate.api.objects import Condition, Metadata, Object
from kybernate.api.quantity import Duration

State = Literal["Auto", "Running", "Suspended", "Parked"]
"""What a person orders: Auto leaves it to policy. While it is Suspended or Parked calls do not wake; they are reset."""


class InstancePolicy(Object, kw_only=True):
    """What the instance may do by itself, resolved from its GpuWorkload or its pod's annotations."""

    container: str
    """The container that sleeps."""
    ports: list[int] = msgspec.field(default_factory=list)
    """TCP ports whose callers wake it."""
    suspend_after: Duration | None = None
    park_after: Duration | None = None
    drain_timeout: Duration = msgspec.field(default_factory=lambda: Duration(30))
    max_in_flight: Duration = msgspec.field(default_factory=lambda: Duration(600))
    wake_timeout: Duration = msgspec.field(default_factory=lambda: Duration(120))
    wake_on_exec: bool = True
    on_terminate: Literal["Drop", "Wake"] = "Drop"
    on_state_lost: Literal["Hold", "Start"] = "Hold"
    keep_awake: bool = False
    """It is one of `idle.minAwake`: it never goes to sleep by itself, and is woken if it sleeps."""


class InstanceSpec(Object, kw_only=True):
    """Intent. `pod_uid` is the fence: only the pod of this uid is the instance, and only it is restored into."""

    workload: str = ""
    ordinal: int = 0
    node_name: str = ""
    """Where its pod runs, or ran last: its state lies there. Empty before its first pod is scheduled."""
    pod: str = ""
    pod_uid: str = ""
    epoch: int = 0
    """Grows with each pod that becomes the instance."""
    state: State = "Auto"
    policy: InstancePolicy
    restore_from: str = ""
    """The manifest id of a GpuCheckpoint from which this instance's pod is to be restored at its first start."""
    start_anew: int = 0
    """Grows when a person (or onStateLost: Start) lets an instance whose state is lost begin anew."""


class NextStep(Object, kw_only=True):
    """What policy does next unless something happens."""

    verb: str
    at: str


class LastWake(Object, kw_only=True):
    """How long the last wake took, from the call to running processes, and from which tier."""

    seconds: float
    source: str = msgspec.field(name="from")


class Transition(Object, kw_only=True):
    """One verb as it went; `phases` are seconds by step."""

    at: str
    verb: str
    seconds: float
    outcome: str
    message: str = ""
    phases: dict[str, float] = msgspec.field(default_factory=dict)


class OrderStatus(Object, kw_only=True):
    """The last order (annotation kybernate.io/order) that was carried out; `outcome` is done or refused."""

    id: str
    verb: str
    outcome: str
    message: str = ""


class InstanceStatus(Object, kw_only=True):
    """What the agent of the node observed."""

    observed_generation: int = 0
    state: str = ""
    """Waiting (no container), Starting, Running, Suspending, Suspended, Parking, Parked, Resuming, StateLost, Ending."""
    tier: str = ""
    """`-` while its processes run, RAM, NVME; empty where there is no state."""
    since: str = ""
    node_name: str = ""
    pod: str = ""
    pod_uid: str = ""
    epoch: int = 0
    """Of the newest committed images."""
    ram_bytes: int = 0
    stored_bytes: int = 0
    last_activity: str = ""
    next: NextStep | None = None
    last_wake: LastWake | None = None
    order: OrderStatus | None = None
    history: list[Transition] = msgspec.field(default_factory=list)
    conditions: list[Condition] = msgspec.field(default_factory=list)


class GpuInstance(Object, kw_only=True):
    """One instance of a GpuWorkload, or of an annotated pod."""

    api_version: str = msgspec.field(default_factory=lambda: API_VERSION)
    kind: str = msgspec.field(default_factory=lambda: "GpuInstance")
    metadata: Metadata
    spec: InstanceSpec
    status: InstanceStatus = msgspec.field(default_factory=InstanceStatus)
