"""What the agent knows of one instance, as plain data.

A `Record` is what outlives the agent (the journal keeps it); a `View` is what `decide` looks at, put together anew each
time from the record, the traffic and the orders that wait.

Phases and what leads from one to the next (the verbs in capitals are steps of `decide`):

    Pending --START--> Running <--RESUME-- Suspended <--SUSPEND-- Running
                          ^                    |
                          |                   PARK
                        RESUME                 v
                          +----------------- Parked
    any --END--> Ended;   Parked --images damaged--> Lost;   Running --its container ended--> Backoff --START--> Running

In a cluster the kubelet starts containers. START is then ADOPT, of a container that came; what a container that ended
leaves is DISCARDed where it was no state; KEEP sees to what it wrote where it was one; and LEAVE is how one goes whose
pod is evicted, its state kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from kybernate_agent.probes import NOTHING, Declared


class Phase(StrEnum):
    PENDING = "Pending"  # no container yet
    RUNNING = "Running"
    SUSPENDED = "Suspended"  # tier RAM
    PARKED = "Parked"  # tier NVME
    BACKOFF = "Backoff"  # its container ended; it is started again after a while
    LOST = "StateLost"  # its state is gone or damaged; it waits for a person
    ENDED = "Ended"


class Verb(StrEnum):
    START = "start"
    SUSPEND = "suspend"
    PARK = "park"
    RESUME = "resume"
    RESCUE = "rescue"  # its keeper died: dump what lives, make a container anew, restore into it
    KEEP = "keep"  # parked, its container is over: what that wrote is put with the images, while it is there
    PROVE = "prove"  # the restored application lives: its images may go
    RESET = "reset"  # calls were held longer than wake.timeout
    END = "end"
    ADOPT = "adopt"  # the kubelet has made a container: take it over
    DISCARD = "discard"  # what it was is over: images and rules go, the next container begins anew
    LEAVE = "leave"  # its pod is evicted: its container ends, parked if it could be
    CHECKPOINT = "checkpoint"  # a lasting copy is made of it, and it goes on as it was


TIER = {Phase.RUNNING: "-", Phase.SUSPENDED: "RAM", Phase.PARKED: "NVME"}


class Pod(msgspec.Struct, kw_only=True):
    """Where the instance runs. `upper` is the writable layer of its container, as the host sees it."""

    uid: str = ""
    sandbox: str = ""
    container: str = ""
    attempt: int = 0
    netns: str = ""
    ip: str = ""
    upper: str = ""
    held_ports: list[int] = []  # what the traffic rule holds while it sleeps: local ports of its sockets
    unread: dict[int, tuple[int, int]] = {}  # what lay unread when it fell asleep, as Activity.unread tells it


class Condition(msgspec.Struct, kw_only=True):
    """As in Kubernetes: `status` is True, False or Unknown; times in seconds since 1970."""

    type: str
    status: str
    reason: str
    message: str = ""
    at: float = 0.0


class Transition(msgspec.Struct, kw_only=True):
    """One verb as it went; `phases` are seconds by step."""

    at: float
    verb: str
    source: str
    target: str
    seconds: float
    outcome: str  # done, aborted, failed
    message: str = ""
    phases: dict[str, float] = {}


class Event(msgspec.Struct, kw_only=True):
    """What a person should know; `type` is Normal or Warning."""

    at: float
    type: str
    reason: str
    message: str


class Policy(msgspec.Struct, kw_only=True, frozen=True):
    """What the workload's author asked for, in seconds; None: that step is never taken."""

    suspend_after: float | None = None
    park_after: float | None = None
    drain_timeout: float = 30.0
    max_in_flight: float = 600.0
    wake_timeout: float = 120.0
    wake_on_exec: bool = True
    state: str = "Auto"  # what a person orders for good: Auto, Running, Suspended, Parked
    keep_awake: bool = False
    target_in_flight: int | None = None  # of so many requests in flight its load is told
    wake_to_end: bool = False  # onTerminate: Wake
    anew_when_lost: bool = False  # onStateLost: Start

    @property
    def down(self) -> bool:
        """Ordered to sleep: calls do not wake it, they are refused at once."""
        return self.state in ("Suspended", "Parked")

    @property
    def up(self) -> bool:
        return self.keep_awake or self.state == "Running"


class Wanted(msgspec.Struct, kw_only=True, frozen=True):
    """What is to be managed, and how: made of a manifest, or of a GpuInstance."""

    container: str  # the name of the container that sleeps
    namespace: str = "default"
    image: str = ""
    ports: tuple[int, ...] = ()  # whose callers wake it; none: all that it listens on
    policy: Policy = Policy()


class Leaving(msgspec.Struct, kw_only=True, frozen=True):
    """containerd told it to end with `signal`, and it is first to be parked, or (`wake`) woken."""

    signal: int
    at: float
    drain: float  # how long requests in flight may hold it back
    until: float = 0.0  # when there is no time left to try once more
    wake: bool = False
    again: bool = False  # the dump came to nothing for a reason that passes when it runs
    failed: bool = False  # it cannot be parked


class Member(msgspec.Struct, kw_only=True):
    """Which GpuInstance it is, so that the node goes on without the API server."""

    name: str
    uid: str
    annotated: bool = False  # of a pod that no GpuWorkload owns
    pod: str = ""  # the pod's name
    pod_uid: str = ""  # spec.podUID, the fence: only this pod is the instance
    generation: int = 0
    restore_from: str = ""  # spec.restoreFrom: the copy that its pod is restored from at its first start
    restored: str = ""  # the one that was taken for it: that happens once
    start_anew: int = 0  # spec.startAnew as it was when it last began anew, or first was seen
    order: str = ""  # the order that was last carried out
    order_verb: str = ""
    order_outcome: str = ""
    order_message: str = ""


HISTORY = 20
EVENTS = 50


class Record(msgspec.Struct, kw_only=True):
    """What outlives the agent. `epoch` counts the committed dumps of the instance; times in seconds since 1970."""

    id: str
    workload: str
    source: str = ""  # the manifest it was made from
    text: str = ""  # that manifest, as it was applied
    phase: Phase = Phase.PENDING
    since: float = 0.0
    epoch: int = 0
    pod: Pod = msgspec.field(default_factory=Pod)
    unproven: int = 0  # epoch of the images that the running application came from, kept until it has lived; 0: none
    last_activity: float = 0.0
    last_wake_seconds: float = 0.0
    last_wake_from: str = ""
    stored_bytes: int = 0
    conditions: list[Condition] = []
    history: list[Transition] = []
    events: list[Event] = []
    # In a cluster only:
    wanted: Wanted | None = None
    member: Member | None = None
    leaving: Leaving | None = None
    wakes: str = ""  # why it is to be woken once it has a container again
    given_up: str = ""  # why its state is not to be kept once its container has ended
    probes: Declared = NOTHING  # what its pod declares for the kubelet

    def not_later_than(self, now: float) -> None:
        """What an agent wrote whose clock was ahead is taken as of `now`: else nothing is due, or new, before then."""
        self.since, self.last_activity = min(self.since, now), min(self.last_activity, now)
        dated: list[Condition | Transition | Event] = [*self.conditions, *self.history, *self.events]
        for each in dated:
            each.at = min(each.at, now)
        if self.leaving and self.leaving.at > now:
            until = self.leaving.until - (self.leaving.at - now)
            self.leaving = msgspec.structs.replace(self.leaving, at=now, until=until)

    def enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self.since = now

    def note(self, transition: Transition) -> None:
        self.history = [*self.history, transition][-HISTORY:]

    def event(self, type_: str, reason: str, message: str, now: float) -> None:
        self.events = [*self.events, Event(at=now, type=type_, reason=reason, message=message)][-EVENTS:]

    def set_condition(self, condition: Condition) -> bool:
        """Put in place of the one of the same type; True where something other than the time changed."""
        old = next((c for c in self.conditions if c.type == condition.type), None)
        if old and (old.status, old.reason, old.message) == (condition.status, condition.reason, condition.message):
            return False
        self.conditions = [*(c for c in self.conditions if c.type != condition.type), condition]
        return True

    def clear_condition(self, type_: str, reason: str = "") -> None:
        """The one of that type is over; with `reason` only where that was why."""
        self.conditions = [c for c in self.conditions if c.type != type_ or reason not in ("", c.reason)]


@dataclass(frozen=True, slots=True)
class Order:
    """What a person asked for once: suspend, park or resume."""

    verb: Verb
    at: float


@dataclass(frozen=True, slots=True)
class View:
    """All that a decision rests on; times in seconds since 1970."""

    phase: Phase
    since: float
    policy: Policy
    last_activity: float = 0.0
    in_flight_since: float | None = None
    wake_wanted: bool = False  # traffic or an exec asks for it
    held_since: float | None = None  # the oldest call that waits
    order: Order | None = None
    not_before: dict[Verb, float] = field(default_factory=dict)  # back-off after failures, by verb
    keeper_alive: bool = True
    processes_alive: bool = True
    killed: bool = False  # its container was ended by a signal from outside, and the keeper said so
    layer_outside: bool = False  # parked, its container is over, and what that wrote may lie with it alone
    half_restored: bool = False  # its keeper died in the midst of a restore, and what that left is not ended yet
    unproven: bool = False
    prove_at: float = 0.0
    deleting: bool = False
    sample_seconds: float = 1.0
    kubelet: bool = False  # the kubelet starts its containers, and not we
    offered: bool = False  # the kubelet has started one, and nobody has taken it over
    leaving: Leaving | None = None
    given_up: bool = False
    ending: bool = False  # the application has been told to end, and is at it
    fenced: bool = False  # another pod is the instance now: this one must not wake
    anew: bool = False  # its state is lost, and it may begin anew
    down_since: float = 0.0  # when it was ordered to sleep for good
    copy_wanted: bool = False  # a checkpoint of it
    starting: bool = False  # awake, and it does not serve yet: its idle time has not begun
    deaf_until: float | None = None  # nobody hears its calls; when that is tried to mend again
