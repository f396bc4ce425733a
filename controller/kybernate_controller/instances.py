"""The next step of one ordinal that is to exist.

nothing          make the pod: its uid is in the answer, and the GpuInstance names it
pod, no or an    write the GpuInstance: another pod uid is another epoch. A controller that was killed between the
older intent     two writes does so at its next look
pod has ended    mark it as disrupted, so that the agent keeps what sleeps, and delete it; then as above
pod is at a      the same: it has not been let start, or has not been scheduled, and where the state lies it is
wrong place      made again
pod is ending    wait

instance leaving  delete its pod, then wait for the agent; where there is none, take the finalizer away
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from kybernate.api import names
from kybernate.api.gpuinstance import InstancePolicy, InstanceSpec
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.api.objects import builtins
from kybernate_controller import placement
from kybernate_controller.actions import (
    Action,
    AdoptPod,
    ApplyInstance,
    CreatePod,
    DeletePod,
    Event,
    LeaveNode,
    ReleaseInstance,
    StartAnew,
)
from kybernate_controller.eviction import NOWHERE, Whereabouts, unanswered, whereabouts
from kybernate_controller.objects import STATE_LOST, Instance, Node, Pod
from kybernate_controller.replica import Replica
from kybernate_controller.template import Template, owner_reference
from kybernate_controller.template import pod as pod_of


def keep(
    workload: GpuWorkloadObject,
    template: Template,
    replica: Replica,
    nodes: Mapping[str, Node],
    *,
    keep_awake: bool,
    may_create: bool,
    avoid: Mapping[str, str],
    young: bool = False,
) -> Iterator[Action]:
    """What brings one member nearer to existing as it should. `may_create`: pods can be made of the template; `avoid`:
    nodes that can take no new one, and why; `young`: its pod was made a moment ago."""
    if replica.taken or replica.leaving:
        return
    state = whereabouts(replica, nodes)
    pod = replica.pod
    if pod is None:
        if state.lost:
            yield from _begin_anew(workload, replica, state.lost)
        elif may_create:
            body = pod_of(workload, template, replica.name, state.node, list(avoid)[: placement.MOST])
            where = f" for node {state.node}" if state.node else placement.said(avoid)
            made = Event("PodCreated", f"Made pod {replica.name}{where}")
            yield CreatePod(name=replica.name, ordinal=replica.ordinal, pod=body, event=made)
        return
    if replica.ending or (pod.terminal and young):
        return
    if replica.orphan:
        owners = [*(builtins(owner) for owner in pod.metadata.owner_references), owner_reference(workload)]
        yield AdoptPod(name=pod.metadata.name, uid=pod.metadata.uid, owners=owners)
        return
    why = misplaced(pod, state, may_create, gives_up=_gives_up(workload, replica.instance), avoid=avoid)
    leaves = not pod.spec.node_name and bool(replica.node) and state == NOWHERE
    if why and not leaves:  # else the GpuInstance says so first, or the next pod would be bound there again
        again = Event("PodReplaced", f"Makes pod {replica.name} again: {why}")
        yield DeletePod(name=pod.metadata.name, uid=pod.metadata.uid, keeps_state=True, event=again)
        return
    if state.lost:
        return  # the pod goes with its node, or waits for it
    if not template.container:
        return
    yield from _intend(workload, template, replica, pod, state_node=state.node, keep_awake=keep_awake)


def misplaced(
    pod: Pod, state: Whereabouts, may_create: bool, *, gives_up: bool = False, avoid: Mapping[str, str] | None = None
) -> str:
    """Why the pod cannot be the instance; empty where it can. `gives_up`: a lost state is not waited for."""
    if pod.terminal:
        return f"it ended ({pod.status.reason or pod.status.phase})"
    if pod.spec.node_name:
        if state.node and pod.spec.node_name != state.node:
            return f"it is on node {pod.spec.node_name}, its state on {state.node}"
        return ""
    bound = pod.metadata.annotations.get(names.STATE_NODE, "")
    if state.lost:
        return state.lost if bound and gives_up else ""
    if not may_create:
        return ""
    if bound != state.node and state.node:
        return f"its state lies on node {state.node}"
    # Else it would race the scheduler, which may bind it right now, and to the same node.
    scheduled = pod.condition("PodScheduled")
    if scheduled is None or scheduled.status != "False":
        return ""
    if bound != state.node:
        return f"nothing is left on node {bound}"
    return placement.in_vain(pod, avoid or {})


def leave(workload: GpuWorkloadObject, replica: Replica, nodes: Mapping[str, Node]) -> Iterator[Action]:
    """What is still to be done for an instance that was asked to go."""
    pod, instance = replica.pod, replica.instance
    if pod is not None and not replica.ending and not replica.taken:
        yield DeletePod(name=pod.metadata.name, uid=pod.metadata.uid, keeps_state=False)
    if instance is None:
        return
    if pod is not None and pod.spec.node_name and not instance.spec.node_name and not replica.taken:
        spec = copy.copy(instance.spec)
        spec.node_name = pod.spec.node_name
        yield _applied(ApplyInstance, spec, workload=workload, replica=replica, old=instance)
        return
    yield from release([instance], nodes)


def release(instances: list[Instance], nodes: Mapping[str, Node]) -> Iterator[Action]:
    """Finalizers that no agent will take away."""
    for instance in instances:
        meta = instance.metadata
        if meta.deletion_timestamp is None or names.STATE_FINALIZER not in meta.finalizers:
            continue
        node = instance.spec.node_name
        if node and not (why := unanswered(node, nodes)):
            continue
        event = Event("StateGivenUp", f"{meta.name} ends; it was on {why}") if node else None
        yield ReleaseInstance(
            name=meta.name,
            uid=meta.uid,
            resource_version=meta.resource_version,
            finalizers=tuple(f for f in meta.finalizers if f != names.STATE_FINALIZER),
            event=event,
        )


def policy_of(workload: GpuWorkloadObject, template: Template, keep_awake: bool) -> InstancePolicy:
    """What an instance may do by itself."""
    spec, idle = workload.spec, workload.spec.idle
    return InstancePolicy(
        container=template.container,
        ports=list(idle.ports) if idle.ports is not None else template.ports,
        suspend_after=idle.suspend_after,
        park_after=idle.park_after,
        drain_timeout=idle.drain_timeout,
        max_in_flight=idle.max_in_flight,
        wake_timeout=spec.wake.timeout,
        wake_on_exec=spec.wake.on_exec,
        on_terminate=spec.on_terminate,
        on_state_lost=spec.on_state_lost,
        keep_awake=keep_awake,
        target_in_flight=spec.wake.target_in_flight if spec.replicas > 1 else None,
    )


def honoured(instance: Instance) -> int:
    """The `startAnew` that was acted upon; a person who raises it asks for another beginning."""
    text = instance.metadata.annotations.get(names.STARTED_ANEW, "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def _intend(
    workload: GpuWorkloadObject, template: Template, replica: Replica, pod: Pod, *, state_node: str, keep_awake: bool
) -> Iterator[Action]:
    """The GpuInstance as it should be, if it is not so."""
    old = replica.instance
    spec = InstanceSpec(
        workload=workload.metadata.name,
        ordinal=replica.ordinal,
        node_name=pod.spec.node_name or state_node,
        pod=pod.metadata.name,
        pod_uid=pod.metadata.uid,
        epoch=1,
        state=workload.spec.state,
        policy=policy_of(workload, template, keep_awake),
    )
    if old is None:
        made = Event("InstanceCreated", f"Made GpuInstance {replica.name}")
        yield _applied(ApplyInstance, spec, workload=workload, replica=replica, event=made)
        return
    spec.epoch = old.spec.epoch + (old.spec.pod_uid != spec.pod_uid)
    spec.restore_from, spec.start_anew = old.spec.restore_from, old.spec.start_anew
    event = None
    if _answers_loss(workload, replica, old):
        spec.start_anew += 1
        event = Event("StateGivenUp", f"{replica.name} begins anew: its state is lost (onStateLost: Start)", True)
    owned = any(owner.uid == workload.metadata.uid for owner in old.metadata.owner_references)
    if spec != old.spec or honoured(old) != spec.start_anew or not owned:
        kind: type[ApplyInstance] = ApplyInstance
        if event is not None:
            kind = StartAnew
        elif old.spec.node_name not in ("", spec.node_name):
            kind = LeaveNode
        yield _applied(kind, spec, workload=workload, replica=replica, old=old, event=event)


def _answers_loss(workload: GpuWorkloadObject, replica: Replica, instance: Instance) -> bool:
    """Whether the agent said that state is lost, and has not been told yet to begin anew."""
    return (
        workload.spec.on_state_lost == "Start"
        and replica.state == STATE_LOST
        and instance.status.observed_generation >= instance.metadata.generation
    )


def _gives_up(workload: GpuWorkloadObject, instance: Instance | None) -> bool:
    """Whether a lost state is given up: the workload says so, or a person who raised `startAnew`."""
    if instance is None:
        return False
    return workload.spec.on_state_lost == "Start" or instance.spec.start_anew > honoured(instance)


def _begin_anew(workload: GpuWorkloadObject, replica: Replica, why: str) -> Iterator[Action]:
    """Give up a state that is lost, if somebody says so: the instance is then nowhere."""
    instance = replica.instance
    if instance is None or not _gives_up(workload, instance):
        return
    asked = instance.spec.start_anew > honoured(instance)
    spec = copy.copy(instance.spec)
    spec.node_name, spec.pod, spec.pod_uid = "", "", ""
    spec.start_anew += not asked
    reason = "a person asked for it" if asked else "onStateLost: Start"
    event = Event("StateGivenUp", f"{replica.name} begins anew: {why} ({reason})", True)
    yield _applied(StartAnew, spec, workload=workload, replica=replica, old=instance, event=event)


def _applied(
    kind: type[ApplyInstance],
    spec: InstanceSpec,
    *,
    workload: GpuWorkloadObject,
    replica: Replica,
    old: Instance | None = None,
    event: Event | None = None,
) -> ApplyInstance:
    """The write of `spec`. All that we own is in it each time: what is left out would be taken away."""
    metadata: dict[str, Any] = {
        "name": replica.name,
        "namespace": workload.metadata.namespace,
        "labels": {names.WORKLOAD: workload.metadata.name},
        "finalizers": [names.STATE_FINALIZER],
        "ownerReferences": [owner_reference(workload)],
    }
    if spec.start_anew:
        metadata["annotations"] = {names.STARTED_ANEW: str(spec.start_anew)}
    if old is not None:
        metadata |= {"uid": old.metadata.uid, "resourceVersion": old.metadata.resource_version}
        if old.metadata.deletion_timestamp is not None:
            metadata["finalizers"] = list(old.metadata.finalizers)
    body = {"apiVersion": names.API_VERSION, "kind": "GpuInstance", "metadata": metadata, "spec": builtins(spec)}
    return kind(
        name=replica.name,
        uid=old.metadata.uid if old else "",
        resource_version=old.metadata.resource_version if old else "",
        body=body,
        event=event,
    )
