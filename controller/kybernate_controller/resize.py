"""Requests of a parked pod (`idle.releaseRequests`): the scheduler gets back what nobody uses.

Parked (on disk), the managed container of a Burstable pod asks for no more than `LEAST`; awake again, or back in
memory, for what it asked when it was made (annotation kybernate.io/requests). Nobody waits for either: a node that has
no room then has the pod run with the lower requests, and the kubelet goes on trying.

Left alone are pods of the classes Guaranteed and BestEffort, whose class forbids it, containers whose resize policy
would restart them, and pods whose resize the API server refused. The condition RequestsReleased says why.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kybernate.api import names
from kybernate.api.quantity import Quantity
from kybernate_controller.actions import ResizePod
from kybernate_controller.objects import NVME, Pod, PodContainer
from kybernate_controller.replica import Replica

LEAST = {"cpu": "10m", "memory": "16Mi"}
"""What a keeper needs; never zero, which would be another QoS class."""


def steps(members: list[Replica], container: str, *, release: bool, unsized: dict[str, str]) -> Iterator[ResizePod]:
    """The pods whose requests are to be changed."""
    for member in members:
        pod = member.alive
        if pod is None or not _is_instance(member, pod) or pod.metadata.uid in unsized or obstacle(pod, container):
            continue
        managed = _container(pod, container)
        if managed is None:
            continue
        wanted = _wanted(pod, parked=member.tier == NVME and release)
        held = managed.resources.requests
        changed = {name: amount for name, amount in wanted.items() if name in held and not _same(held[name], amount)}
        if changed:
            yield ResizePod(name=pod.metadata.name, uid=pod.metadata.uid, container=container, requests=changed)


def _is_instance(member: Replica, pod: Pod) -> bool:
    """What is said of the instance is about this pod."""
    instance = member.instance
    return instance is not None and instance.spec.pod_uid == pod.metadata.uid and bool(pod.spec.node_name)


def obstacle(pod: Pod, container: str) -> str:
    """Why the pod's requests cannot be lowered; empty where they can, or nothing is known yet."""
    if pod.status.qos_class in ("Guaranteed", "BestEffort"):
        return f"pods of QoS class {pod.status.qos_class} keep their requests; name requests below the limits"
    managed = _container(pod, container)
    if managed is not None and any(policy.restart_policy == "RestartContainer" for policy in managed.resize_policy):
        return f"container {container} has resizePolicy RestartContainer: changing its requests would restart it"
    return ""


def _wanted(pod: Pod, *, parked: bool) -> dict[str, str]:
    """The requests that the container should have; what the pod was not made with is not touched."""
    try:
        asked = msgspec.json.decode(pod.metadata.annotations.get(names.REQUESTS, "{}"), type=dict[str, str])
        amounts = {name: Quantity(amount) for name, amount in asked.items() if name in LEAST}
    except (msgspec.MsgspecError, ValueError):
        return {}
    if not parked:
        return {name: amount.text for name, amount in amounts.items()}
    return {
        name: LEAST[name] if amount.value > Quantity(LEAST[name]).value else amount.text
        for name, amount in amounts.items()
    }


def _same(held: str, wanted: str) -> bool:
    try:
        return Quantity(held) == Quantity(wanted)
    except ValueError:
        return False


def _container(pod: Pod, name: str) -> PodContainer | None:
    return next((container for container in pod.spec.containers if container.name == name), None)
