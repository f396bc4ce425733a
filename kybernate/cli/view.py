"""What an instance looks like: as a row, and as data with the names that its Kubernetes kind has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kybernate.cli.output import BLUE, DIM, GREEN, RED, YELLOW, print_data, size, span

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from kybernate.agentapi._pb import agent_pb2 as pb

HEADER = ("NAME", "STATE", "TIER", "SINCE", "NEXT", "RAM", "LAST WAKE")
STATE_COLUMN = 1

_COLOURS = {"Running": GREEN, "Suspended": BLUE, "Parked": BLUE, "StateLost": RED, "Failed": RED, "Deleted": DIM}


def colours(state: str) -> dict[int, int]:
    """Colours of a row's cells. A state that is not known here is one that passes."""
    return {STATE_COLUMN: _COLOURS.get(state, YELLOW)}


def row(instance: pb.Instance, state: str = "") -> list[str]:
    """The cells under HEADER; `state` replaces the instance's own."""
    now = time.time()
    return [
        instance.name,
        state or instance.state or "-",
        instance.tier or "-",
        span(now - _seconds(instance.since)) if instance.HasField("since") else "-",
        next_step(instance),
        size(instance.ram_bytes),
        last_wake(instance),
    ]


def next_step(instance: pb.Instance) -> str:
    """`suspend in 42s`. Without a time that has passed: it was put off since, and a cluster is not told each time."""
    if not instance.next_verb:
        return "-"
    if not instance.HasField("next_at") or _seconds(instance.next_at) <= time.time():
        return instance.next_verb
    return f"{instance.next_verb} in {span(_seconds(instance.next_at) - time.time())}"


def last_wake(instance: pb.Instance) -> str:
    """`0.14s from NVME`."""
    if not instance.HasField("last_wake_seconds"):
        return "-"
    return f"{instance.last_wake_seconds:.3g}s from {instance.last_wake_from}"


def print_all(instances: Sequence[pb.Instance], form: str, *, one: bool) -> None:
    """As JSON or YAML: a list, or where it is about `one` that one itself."""
    data = [plain(each) for each in instances]
    if not one or data:
        print_data(data[0] if one else data, form)


def plain(instance: pb.Instance) -> dict[str, Any]:
    """For JSON and YAML: camel case, times as RFC 3339, nothing for what is unknown."""
    wake = {"seconds": instance.last_wake_seconds, "from": instance.last_wake_from}
    following = {"verb": instance.next_verb, "at": when(instance, "next_at")}
    return _without_nothing(
        {
            "name": instance.name,
            "workload": instance.workload,
            "namespace": instance.namespace,
            "state": instance.state,
            "tier": instance.tier,
            "since": when(instance, "since"),
            "next": _without_nothing(following) if instance.next_verb else None,
            "ramBytes": instance.ram_bytes,
            "storedBytes": instance.stored_bytes,
            "lastActivity": when(instance, "last_activity"),
            "lastWake": wake if instance.HasField("last_wake_seconds") else None,
            "epoch": instance.epoch,
            "image": instance.image,
            "podUID": instance.uid,
            "podIP": instance.ip,
            "node": instance.node,
            "containerID": instance.container_id,
            "sandboxID": instance.sandbox_id,
            "pid": instance.pid or None,
            "conditions": [_condition(condition) for condition in instance.conditions],
            "history": [_transition(transition) for transition in instance.history],
            "events": [_event(event) for event in instance.events],
        }
    )


def when(message: Any, field: str) -> str | None:
    """A time as RFC 3339 with the machine's own offset; None where it is absent."""
    if not message.HasField(field):
        return None
    return datetime.fromtimestamp(_seconds(getattr(message, field))).astimezone().isoformat(timespec="milliseconds")


def ago(message: Any, field: str) -> str:
    """`12m ago`, `-` where it is absent."""
    return f"{span(time.time() - _seconds(getattr(message, field)))} ago" if message.HasField(field) else "-"


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos * 1e-9


def _condition(condition: pb.Condition) -> dict[str, Any]:
    return _without_nothing(
        {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "lastTransitionTime": when(condition, "last_transition"),
        }
    )


def _transition(transition: pb.Transition) -> dict[str, Any]:
    return _without_nothing(
        {
            "at": when(transition, "at"),
            "verb": transition.verb,
            "from": transition.from_state,
            "to": transition.to_state,
            "seconds": transition.seconds,
            "phaseSeconds": dict(transition.phase_seconds),
            "outcome": transition.outcome,
            "message": transition.message,
        }
    )


def _event(event: pb.Event) -> dict[str, Any]:
    return _without_nothing(
        {"at": when(event, "at"), "type": event.type, "reason": event.reason, "message": event.message}
    )


def _without_nothing(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, "", {}, [])}
