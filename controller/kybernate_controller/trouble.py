"""What is wrong with one instance, in a person's words: what, why, and what to do where there is something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from kybernate.api import names
from kybernate_controller.eviction import node_trouble, whereabouts
from kybernate_controller.objects import RESTORE_FAILED, STATE_LOST, ContainerStatus, Node, Pod
from kybernate_controller.replica import Findings, Replica

FAULTS = frozenset(
    {
        "CrashLoopBackOff", "RunContainerError", "CreateContainerError", "CreateContainerConfigError",
        "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "ImageInspectError", "InvalidImageName",
    }
)  # fmt: skip
"""Reasons for which the kubelet has a container wait, and will have it wait again."""


class Trouble(NamedTuple):
    """`reason` in one word, for programs; `message` names the instance."""

    reason: str
    message: str


def lost(replica: Replica, nodes: Mapping[str, Node]) -> str:
    """Why the instance's state is lost; empty if it is not."""
    if (state := whereabouts(replica, nodes)).lost:
        return f"{replica.name}: {state.lost}"
    if replica.state == STATE_LOST:
        return f"{replica.name}: the agent of node {replica.node} cannot restore it; the GpuInstance says why"
    return ""


def of(replica: Replica, nodes: Mapping[str, Node], findings: Findings) -> Trouble | None:
    """The first thing that is wrong; None where nothing is."""
    name = replica.name
    if replica.taken:
        return Trouble("NameTaken", f"{name}: the name is taken by {replica.taken}; it is left alone and waited for")
    if replica.leaving:
        return _leaving(replica, nodes)
    pod = replica.pod
    if pod is None:
        refused = findings.refused.get(replica.ordinal)
        return Trouble("PodRefused", f"{name}: {refused}") if refused else None
    if replica.cut_off:
        return Trouble("NodeUnreachable", f"{name}: {node_trouble(pod.spec.node_name, nodes)}")
    bound = "" if pod.spec.node_name else pod.metadata.annotations.get(names.STATE_NODE)
    if bound and (why := node_trouble(bound, nodes)):
        return Trouble("WaitsForNode", f"{name}: it waits for its state: {why}")
    return next(_of_pod(name, pod), None) or _of_sleep(replica)


def _of_sleep(replica: Replica) -> Trouble | None:
    """Its pod is well while it sleeps, whatever keeps it from waking. The agent's words change with each try."""
    failed = replica.instance.status.cannot_wake if replica.instance is not None else None
    if failed is None:
        return None
    why = f"it cannot be woken ({failed.reason}); the GpuInstance says why"
    return Trouble(RESTORE_FAILED, f"{replica.name}: {why}")


def _leaving(replica: Replica, nodes: Mapping[str, Node]) -> Trouble | None:
    node = nodes.get(replica.node)
    if node is None or node.ready:
        return None
    return Trouble("NodeUnreachable", f"{replica.name}: it is to go; {node_trouble(replica.node, nodes)}")


def _of_pod(name: str, pod: Pod) -> Iterator[Trouble]:
    if pod.terminal:
        yield Trouble("PodEnded", f"{name}: {pod.status.message or pod.status.reason or pod.status.phase}")
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        yield Trouble(scheduled.reason or "Unschedulable", f"{name}: {scheduled.message}")
    for container in (*pod.status.init_container_statuses, *pod.status.container_statuses):
        yield from _of_container(name, container)


def _of_container(name: str, container: ContainerStatus) -> Iterator[Trouble]:
    waiting = container.state.waiting
    if waiting is not None and waiting.reason in FAULTS:
        yield Trouble(waiting.reason, f"{name}: container {container.name}: {waiting.message or waiting.reason}")
