"""What the agent reads of Kubernetes' own objects, and what it makes of them. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from kybernate.api import names
from kybernate.api.gpuinstance import GpuInstance, InstancePolicy, InstanceSpec
from kybernate.api.objects import Condition, Metadata, Object, OwnerReference, builtins
from kybernate.api.quantity import Duration
from kybernate.errors import InvalidError
from kybernate_agent.instance import Policy, Wanted
from kybernate_agent.probes import Declared, declared

LONGEST_ID = 200  # with what the store and the journal add, still one file name


class PodAnnotationError(InvalidError):
    """pod {pod}: annotation {annotation}: {problem}. Correct it in the pod's template."""


class ContainerPort(Object, kw_only=True):
    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(Object, kw_only=True):
    name: str
    image: str = ""
    ports: list[ContainerPort] = msgspec.field(default_factory=list)
    startup_probe: dict[str, Any] | None = None
    liveness_probe: dict[str, Any] | None = None
    readiness_probe: dict[str, Any] | None = None
    lifecycle: dict[str, Any] | None = None


class ContainerStatus(Object, kw_only=True):
    name: str
    ready: bool = False


class PodSpec(Object, kw_only=True):
    node_name: str = ""
    runtime_class_name: str = ""
    termination_grace_period_seconds: int = 30
    containers: list[Container] = msgspec.field(default_factory=list)


class PodStatus(Object, kw_only=True):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    conditions: list[Condition] = msgspec.field(default_factory=list)
    container_statuses: list[ContainerStatus] = msgspec.field(default_factory=list)


class Pod(Object, kw_only=True):
    """The fields that the agent needs."""

    metadata: Metadata
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


@dataclass(frozen=True, slots=True)
class Fate:
    """What is known of a pod that is told to end. Deleted: somebody asked for it; evicted: its instance is to stay."""

    deleted: bool
    evicted: bool
    grace_seconds: float = 30.0


def fate_of(pod: Pod) -> Fate:
    """Kubernetes says DisruptionTarget before it deletes an evicted pod; a node under pressure says Failed itself."""
    evicted = any(c.type == "DisruptionTarget" and c.status == "True" for c in pod.status.conditions)
    meta = pod.metadata
    grace = meta.deletion_grace_period_seconds
    return Fate(
        deleted=meta.deletion_timestamp is not None,
        evicted=evicted,
        grace_seconds=float(pod.spec.termination_grace_period_seconds if grace is None else grace),
    )


def probes_of(pod: Pod, container: str) -> Declared:
    """What the kubelet is to do to that container of the pod."""
    return declared(builtins(found) for found in pod.spec.containers if found.name == container)


def is_ready(pod: Pod, container: str) -> bool:
    """Whether the kubelet finds that container ready."""
    return any(status.ready for status in pod.status.container_statuses if status.name == container)


def id_of(namespace: str, name: str) -> str:
    """The instance's id in journal and store. A namespace has no dot, so two never share one."""
    whole = f"{namespace}.{name}"
    if len(whole) <= LONGEST_ID:
        return whole
    return f"{whole[: LONGEST_ID - 34].rstrip('.-')}-{hashlib.sha256(whole.encode()).hexdigest()[:32]}"


def wanted_of(instance: GpuInstance, image: str = "") -> Wanted:
    policy = instance.spec.policy
    return Wanted(
        container=policy.container,
        namespace=instance.metadata.namespace,
        image=image,
        ports=tuple(policy.ports),
        policy=Policy(
            suspend_after=None if policy.suspend_after is None else float(policy.suspend_after),
            park_after=None if policy.park_after is None else float(policy.park_after),
            drain_timeout=float(policy.drain_timeout),
            max_in_flight=float(policy.max_in_flight),
            wake_timeout=float(policy.wake_timeout),
            wake_on_exec=policy.wake_on_exec,
            state=instance.spec.state,
            keep_awake=policy.keep_awake,
            target_in_flight=policy.target_in_flight,
            wake_to_end=policy.on_terminate == "Wake",
            anew_when_lost=policy.on_state_lost == "Start",
        ),
    )


def is_managed(pod: Pod) -> bool:
    """Whether the shim manages a container of it."""
    return pod.spec.runtime_class_name == names.RUNTIME_HANDLER and bool(containers_of(pod))


def containers_of(pod: Pod) -> list[str]:
    listed = pod.metadata.annotations.get(names.CONTAINERS, "").split(",")
    return [name.strip() for name in listed if name.strip()]


def is_annotated(pod: Pod) -> bool:
    """Managed, and no GpuWorkload's: the agent makes its GpuInstance."""
    ours = any(owner.kind == "GpuWorkload" for owner in pod.metadata.owner_references)
    return is_managed(pod) and not ours and names.INSTANCE not in pod.metadata.labels


def annotated_instance(pod: Pod, node: str) -> GpuInstance:
    """The GpuInstance of an annotated pod: its state lives and dies with the pod. Raises PodAnnotationError."""
    meta = pod.metadata
    owner = OwnerReference(api_version="v1", kind="Pod", name=meta.name, uid=meta.uid)
    return GpuInstance(
        metadata=Metadata(
            name=meta.name, namespace=meta.namespace, owner_references=[owner], finalizers=[names.STATE_FINALIZER]
        ),
        spec=InstanceSpec(node_name=node, pod=meta.name, pod_uid=meta.uid, epoch=1, policy=_annotated_policy(pod)),
    )


def _annotated_policy(pod: Pod) -> InstancePolicy:
    found = containers_of(pod)
    if len(found) != 1:
        raise _wrong(pod, names.CONTAINERS, f"it names {len(found)} containers; one of a pod can sleep yet")
    container = next((c for c in pod.spec.containers if c.name == found[0]), None)
    if container is None:
        raise _wrong(pod, names.CONTAINERS, f"the pod has no container {found[0]!r}")
    park, suspend = _duration(pod, names.PARK_AFTER), _duration(pod, names.SUSPEND_AFTER)
    if park is not None and suspend is None:
        raise _wrong(pod, names.PARK_AFTER, f"it needs {names.SUSPEND_AFTER}")
    declared = [port.container_port for port in container.ports if port.protocol == "TCP"]
    return InstancePolicy(
        container=container.name,
        ports=_ports(pod) or list(dict.fromkeys(declared)),
        suspend_after=suspend,
        park_after=park,
        on_state_lost="Start",
    )


def _duration(pod: Pod, annotation: str) -> Duration | None:
    text = pod.metadata.annotations.get(annotation)
    if text is None:
        return None
    try:
        return Duration.parse(text.strip())
    except ValueError as error:
        raise _wrong(pod, annotation, str(error)) from error


def _ports(pod: Pod) -> list[int]:
    text = pod.metadata.annotations.get(names.PORTS, "")
    ports = [word.strip() for word in text.split(",") if word.strip()]
    if wrong := [word for word in ports if not (word.isdigit() and 0 < int(word) < 65536)]:
        raise _wrong(pod, names.PORTS, f"expected port numbers with commas between, got {wrong[0]!r}")
    return list(dict.fromkeys(int(word) for word in ports))


def _wrong(pod: Pod, annotation: str, problem: str) -> PodAnnotationError:
    return PodAnnotationError(
        pod=f"{pod.metadata.namespace}/{pod.metadata.name}", annotation=annotation, problem=problem
    )
