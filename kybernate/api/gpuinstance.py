"""GpuInstance: one replica, what sleeps and wakes. Its id outlives its pods.

The controller writes `spec` (which pod is the instance now, on which node its state lies, what it may do by itself);
the agent of that node writes `status` (what is true). For an annotated pod that no GpuWorkload owns the agent itself
makes the object, owned by the pod.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from kybernate.api.kind import Port, Rule, says
from kybernate.api.names import API_VERSION
from kybernate.api.objects import Conditions, Metadata, Object, Time
from kybernate.api.quantity import Duration
from kybernate.api.resource import AGE, Column, CustomResource

State = Literal["Auto", "Running", "Suspended", "Parked"]
"""What a person orders: Auto leaves it to policy. While it is Suspended or Parked calls do not wake; they are reset."""


class InstancePolicy(Object, kw_only=True):
    """What the instance may do by itself, resolved from its GpuWorkload or its pod's annotations."""

    container: Annotated[str, says("The container that sleeps.", min_length=1)]
    ports: Annotated[list[Port], says("TCP ports whose callers wake it.")] = msgspec.field(default_factory=list)
    suspend_after: Annotated[
        Duration | None, says("Suspend after so long without traffic and without a request in flight. Absent: never.")
    ] = None
    park_after: Annotated[Duration | None, says("Park so long after it was suspended. Absent: never.")] = None
    drain_timeout: Annotated[
        Duration, says("How long a request in flight may hold back a suspend that a person orders.")
    ] = msgspec.field(default_factory=lambda: Duration(30))
    max_in_flight: Annotated[
        Duration, says("A request whose answer has not begun counts as in flight so long, however silent.")
    ] = msgspec.field(default_factory=lambda: Duration(600))
    wake_timeout: Annotated[Duration, says("A call that waited so long for a wake is reset.")] = msgspec.field(
        default_factory=lambda: Duration(120)
    )
    wake_on_exec: Annotated[bool, says("`exec` wakes; false: it is refused while the instance sleeps.")] = True
    on_terminate: Annotated[
        Literal["Drop", "Wake"], says("Drop: when it is deleted while it sleeps it ends without waking.")
    ] = "Drop"
    on_state_lost: Annotated[
        Literal["Hold", "Start"], says("When its state is lost. Hold: wait for a person; Start: begin anew.")
    ] = "Hold"
    keep_awake: Annotated[
        bool,
        says(
            "One of `idle.minAwake`, or needed by `wake.targetInFlight`: it does not go to sleep by itself, and is "
            "woken if it sleeps."
        ),
    ] = False
    target_in_flight: (
        Annotated[int, says("Of how many requests in flight `status.load` is told. Absent: it is not.", ge=1)] | None
    ) = None


class InstanceSpec(Object, kw_only=True):
    """Intent, written by the controller.

    `podUID` is the fence: only the pod of this uid is the instance, and only it is restored into.
    """

    rules: ClassVar = (
        Rule(
            "has(self.workload) == has(oldSelf.workload) && (!has(self.workload) || self.workload == oldSelf.workload)",
            "stays as it is",
            ".workload",
        ),
        Rule("self.ordinal == oldSelf.ordinal", "stays as it is", ".ordinal"),
        Rule("self.epoch >= oldSelf.epoch", "only grows: it fences what an earlier pod writes", ".epoch"),
        Rule("self.startAnew >= oldSelf.startAnew", "only grows", ".startAnew"),
    )

    workload: Annotated[str, says("The GpuWorkload; empty: an annotated pod's.", max_length=253)] = ""
    ordinal: Annotated[int, says("Which of the workload's instances.", ge=0)] = 0
    node_name: Annotated[
        str,
        says(
            "Where its pod runs, or ran last: its state lies there. Empty before its first pod is scheduled.",
            max_length=253,
        ),
    ] = ""
    pod: Annotated[str, says("The pod that is the instance now.")] = ""
    pod_uid: Annotated[str, says("That pod's uid: the fence.")] = msgspec.field(name="podUID", default="")
    epoch: Annotated[int, says("Grows with each pod that becomes the instance.", ge=0)] = 0
    state: Annotated[State, says("What a person orders; see GpuWorkload.")] = "Auto"
    policy: InstancePolicy
    restore_from: Annotated[
        str, says("Manifest id of a GpuCheckpoint from which its pod is restored at its first start.")
    ] = ""
    start_anew: Annotated[
        int,
        says("Grows when a person (or onStateLost: Start) lets it begin anew after its state was lost.", ge=0),
    ] = 0


class NextStep(Object, kw_only=True):
    """What policy does next unless something happens."""

    verb: Annotated[str, says("suspend or park.")]
    at: Annotated[Time, says("When.")]


class LastWake(Object, kw_only=True):
    """How long the last wake took, from the call to running processes, and from which tier."""

    seconds: Annotated[float, says("From the call to running processes.")]
    source: Annotated[str, says("The tier: RAM or NVME.")] = msgspec.field(name="from")


class Transition(Object, kw_only=True):
    """One verb as it went; `phases` are seconds by step."""

    at: Annotated[Time, says("When it began.")]
    verb: Annotated[str, says("suspend, park, resume, checkpoint, restore or start.")]
    seconds: Annotated[float, says("How long it took.")]
    outcome: Annotated[str, says("done, aborted (as it was before) or failed.")]
    message: Annotated[str, says("Why it failed or was refused.")] = ""
    phases: Annotated[dict[str, float], says("Seconds by step.")] = msgspec.field(default_factory=dict)


class OrderStatus(Object, kw_only=True):
    """The last order (annotation kybernate.io/order) that was carried out; `outcome` is done or refused."""

    id: Annotated[str, says("The order's id.")]
    verb: Annotated[str, says("suspend, park or resume.")]
    outcome: Annotated[str, says("done or refused.")]
    message: Annotated[str, says("Why it was refused.")] = ""


class InstanceStatus(Object, kw_only=True):
    """Facts, as the agent of the node observed them."""

    observed_generation: Annotated[int, says("Of the spec that this status is about.")] = 0
    state: Annotated[
        str,
        says(
            "Waiting (no container), Starting, Running, Suspending, Suspended, Parking, Parked, Resuming, StateLost or "
            "Ending."
        ),
    ] = ""
    tier: Annotated[
        str, says("Where its state lies: `-` while its processes run, RAM, NVME; empty where there is no state.")
    ] = ""
    since: Annotated[Time, says("Since when it is in this state.")] = ""
    node_name: Annotated[str, says("The node whose agent says so.")] = ""
    pod: Annotated[str, says("The pod that is the instance.")] = ""
    pod_uid: Annotated[str, says("That pod's uid.")] = msgspec.field(name="podUID", default="")
    epoch: Annotated[int, says("Of the newest committed images.")] = 0
    ram_bytes: Annotated[int, says("Memory of its processes, while they are there.")] = 0
    stored_bytes: Annotated[int, says("Bytes of its images on the node's disk.")] = 0
    last_activity: Annotated[
        Time, says("Its last traffic, as of the last transition: it is not written by itself.")
    ] = ""
    load: Annotated[
        str,
        says(
            "While it is awake and has a targetInFlight. Full: so many requests are in flight, as a mean of ten "
            "seconds, until there are fewer than three quarters; Low: fewer than a quarter for ten seconds, until "
            "there are three eighths; else Some. Empty: not known yet."
        ),
    ] = ""
    next: NextStep | None = None
    last_wake: LastWake | None = None
    order: OrderStatus | None = None
    history: Annotated[list[Transition], says("Its last 20 transitions, the newest last.")] = msgspec.field(
        default_factory=list
    )
    conditions: Conditions = msgspec.field(default_factory=list)


class GpuInstance(Object, kw_only=True):
    """One instance of a GpuWorkload, or of an annotated pod. Made by Kybernate, never by a person."""

    api_version: str = msgspec.field(default_factory=lambda: API_VERSION)
    kind: str = msgspec.field(default_factory=lambda: "GpuInstance")
    metadata: Metadata
    spec: InstanceSpec
    status: InstanceStatus = msgspec.field(default_factory=InstanceStatus)


RESOURCE = CustomResource(
    GpuInstance,
    "gpuinstances",
    "gi",
    (
        Column("Node", ".spec.nodeName", "Where its pod runs, or its state lies."),
        Column("State", ".status.state", "What it is now."),
        Column("Tier", ".status.tier", "Where its state lies; - while it runs."),
        Column("Since", ".status.since", "How long it is so.", type="date"),
        Column("Next", ".status.next.verb", "What policy does next."),
        Column("Last-Wake", ".status.lastWake.seconds", "Seconds that its last wake took.", type="number"),
        Column("Next-At", ".status.next.at", "When policy does it.", wide=True),
        Column("Load", ".status.load", "Full, Some or Low, of targetInFlight.", wide=True),
        Column("Order", ".spec.state", "What a person ordered for good.", wide=True),
        Column("Stored", ".status.storedBytes", "Bytes on the node's disk.", type="integer", wide=True),
        Column("Epoch", ".spec.epoch", "Grows with each pod.", type="integer", wide=True),
        AGE,
    ),
    selectable=(".spec.nodeName", ".spec.workload"),
)
