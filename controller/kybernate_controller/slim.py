"""What is held of ten thousand of each kind: only what somebody looks at, and what many have in common only once.

An Informer calls these for each object before it is put in. They change the object in place, which is theirs still.
Strings that many objects share (kinds, reasons, times of one rollout, a workload's name in its pod) are interned: one
string for all, for as long as somebody holds it.
"""

from __future__ import annotations

from functools import lru_cache
from sys import intern
from typing import TypeVar

import msgspec

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate_controller.objects import DISRUPTION_TARGET, RESTORE_FAILED, GpuNode, Instance, Meta, Node, Pod

T = TypeVar("T")

LABELS = frozenset({names.WORKLOAD, names.TEMPLATE_HASH})
ANNOTATIONS = frozenset({names.STATE_NODE, names.AVOIDS, names.REQUESTS, names.STARTED_ANEW})
CONDITIONS = frozenset({"ContainersReady", "PodScheduled", DISRUPTION_TARGET, names.SERVING})


def workload(object: GpuWorkloadObject) -> GpuWorkloadObject:
    metadata, spec = object.metadata, object.spec
    metadata.labels, metadata.annotations = _NONE, _NONE
    metadata.namespace, metadata.uid = intern(metadata.namespace), intern(metadata.uid)
    metadata.name, metadata.creation_timestamp = intern(metadata.name), ""
    for name in ("idle", "wake", "rollout"):
        msgspec.structs.force_setattr(spec, name, _one(getattr(spec, name)))
    for condition in object.status.conditions:
        condition.reason, condition.message = intern(condition.reason), intern(condition.message)
        condition.last_transition_time = intern(condition.last_transition_time)
    return object


def instance(object: Instance) -> Instance:
    spec, status = object.spec, object.status
    _meta(object.metadata)
    spec.workload, spec.pod, spec.pod_uid = intern(spec.workload), intern(spec.pod), intern(spec.pod_uid)
    spec.node_name = intern(spec.node_name)
    spec.policy.container = intern(spec.policy.container)
    status.state, status.tier = intern(status.state), intern(status.tier)
    status.node_name, status.pod_uid = intern(status.node_name), intern(status.pod_uid)
    status.load = intern(status.load)
    status.conditions = tuple(c for c in status.conditions if c.type == RESTORE_FAILED)
    return object


def pod(object: Pod) -> Pod:
    spec, status = object.spec, object.status
    _meta(object.metadata)
    spec.node_name = intern(spec.node_name)
    for container in spec.containers:
        container.name = intern(container.name)
        container.resources.requests = _shared(container.resources.requests)
    status.phase, status.qos_class = intern(status.phase), intern(status.qos_class)
    status.conditions = tuple(c for c in status.conditions if c.type in CONDITIONS)
    for condition in status.conditions:
        condition.type, condition.status = intern(condition.type), intern(condition.status)
        condition.reason, condition.message = intern(condition.reason), intern(condition.message)
    status.container_statuses = tuple(c for c in status.container_statuses if c.state.waiting)
    status.init_container_statuses = tuple(c for c in status.init_container_statuses if c.state.waiting)
    return object


def node(object: Node) -> Node:
    """Heartbeats, sizes and labels are not looked at."""
    object.metadata.labels, object.metadata.annotations = {}, {}
    object.status.conditions = tuple(c for c in object.status.conditions if c.type == "Ready")
    return object


def gpu_node(object: GpuNode) -> GpuNode:
    _meta(object.metadata)
    object.status.conditions = tuple(c for c in object.status.conditions if c.type == "Ready")
    return object


_NONE: dict[str, str] = {}


def _shared(found: dict[str, str]) -> dict[str, str]:
    """One dict for all that are equal: most pods of a workload ask for the same."""
    return _dict(tuple(found.items())) if found else _NONE


@lru_cache(maxsize=4096)
def _dict(items: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return dict(items)


def _meta(metadata: Meta) -> None:
    metadata.name, metadata.namespace = intern(metadata.name), intern(metadata.namespace)
    metadata.uid = intern(metadata.uid)
    metadata.labels = {intern(k): intern(v) for k, v in metadata.labels.items() if k in LABELS}
    metadata.annotations = _shared({k: v for k, v in metadata.annotations.items() if k in ANNOTATIONS})
    metadata.finalizers = tuple(map(intern, metadata.finalizers))
    for owner in metadata.owner_references:
        owner.api_version, owner.kind = intern(owner.api_version), intern(owner.kind)
        owner.name, owner.uid = intern(owner.name), intern(owner.uid)


@lru_cache(maxsize=4096)
def _one(value: T) -> T:
    """The first of all that are equal to `value`, which is frozen."""
    return value
