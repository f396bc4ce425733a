"""Who takes a changed template, and when.

A pod is made of the template of its time; an outdated one is replaced by deleting it: its successor is made of the
present template and starts anew. At most `maxUnavailable` instances do not answer at a time because of it.

- One that does not answer anyway is replaced at once: a broken template must not keep its own remedy out.
- One that is awake is replaced when the others answer, highest ordinal first.
- One that sleeps keeps its old template until it is awake (`sleeping: OnWake`), or is replaced as if it were awake
  (`Now`). Its state is then given up, which an event says.
- One whose state is lost waits for a person: a new pod would begin anew, and nobody has said so.

An eviction is no rollout. But the old template is not kept: the next pod of an evicted sleeper is made of the present
one, and where its state does not fit into that the agent says so (StateLost), and keeps it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate_controller.actions import DeletePod, Event
from kybernate_controller.objects import STATE_LOST
from kybernate_controller.replica import Replica


def outdated(replica: Replica, template_hash: str) -> bool:
    """It has a pod that is not of the present template."""
    pod = replica.alive
    return pod is not None and not replica.orphan and pod.metadata.labels.get(names.TEMPLATE_HASH) != template_hash


def replace(
    workload: GpuWorkloadObject, template_hash: str, members: list[Replica], going: Collection[str]
) -> Iterator[DeletePod]:
    """The pods that are to go now for the present template. `going`: uids of those that go anyway."""
    rollout = workload.spec.rollout
    down = sum(not m.available or _uid(m) in going for m in members)
    for member in sorted(members, key=lambda m: (m.available, -m.ordinal)):
        pod = member.alive
        if (
            pod is None
            or _uid(member) in going
            or member.leaving
            or member.taken
            or not outdated(member, template_hash)
        ):
            continue
        if member.state == STATE_LOST or (member.asleep and rollout.sleeping == "OnWake"):
            continue
        if member.available:
            if down >= rollout.max_unavailable:
                return
            down += 1
        event = Event("PodReplaced", f"Replaces pod {member.name}: the template changed")
        if member.asleep:
            event = Event("StateGivenUp", f"{member.name} gives its state up for the changed template", True)
        yield DeletePod(name=pod.metadata.name, uid=pod.metadata.uid, keeps_state=False, event=event)


def _uid(replica: Replica) -> str:
    return replica.pod.metadata.uid if replica.pod else ""
