"""A GpuInstance in the form that the commands show, which is what a machine's agent sends."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from kybernate.agentapi._pb import agent_pb2 as pb
from kybernate.api.gpuinstance import GpuInstance


def message_of(instance: GpuInstance) -> pb.Instance:
    """What its status says, and of its spec what that leaves open."""
    status, spec = instance.status, instance.spec
    message = pb.Instance(
        name=instance.metadata.name,
        workload=spec.workload,
        namespace=instance.metadata.namespace,
        state="Ending" if instance.metadata.deletion_timestamp else status.state or "Waiting",
        tier=status.tier.replace("-", ""),
        since=time_of(status.since),
        ram_bytes=status.ram_bytes,
        stored_bytes=status.stored_bytes,
        last_activity=time_of(status.last_activity),
        epoch=status.epoch,
        uid=status.pod_uid or spec.pod_uid,
        node=status.node_name or spec.node_name,
    )
    if status.next is not None:
        message.next_verb = status.next.verb
        if (at := time_of(status.next.at)) is not None:
            message.next_at.CopyFrom(at)
    if status.last_wake is not None:
        message.last_wake_seconds, message.last_wake_from = status.last_wake.seconds, status.last_wake.source
    for c in status.conditions:
        message.conditions.add(
            type=c.type, status=c.status, reason=c.reason, message=c.message,
            last_transition=time_of(c.last_transition_time),
        )  # fmt: skip
    for t in status.history:
        message.history.add(
            at=time_of(t.at), verb=t.verb, seconds=t.seconds, outcome=t.outcome, message=t.message,
            phase_seconds=t.phases,
        )  # fmt: skip
    return message


def time_of(text: str) -> Timestamp | None:
    """Of RFC 3339; None for nothing."""
    if not text:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromisoformat(text))
    return stamp
