"""A workload as what CRI takes: a pure translation, as the kubelet does it for a pod.

Where the kubelet has a default that a pod's author relies on, it is the same here: masked paths, seccomp, namespaces,
CPU weights and quotas, the mode of an emptyDir.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kybernate.api import GpuWorkload
from kybernate.api.names import CONTAINERS, GROUP, INSTANCE, WORKLOAD
from kybernate.api.pod import Container, Volume
from kybernate_agent.standalone._pb import cri_pb2 as pb

AGENT = f"{GROUP}/agent"
"""Label: which agent a pod belongs to, where several share a containerd."""

_HOSTS = "/etc/hosts"
_CPU_PERIOD_US = 100_000
_LEAST_CPU_QUOTA_US = 1_000
_LEAST_CPU_SHARES = 2
# Kubernetes' ProcMount "Default"; containerd masks nothing for a container whose configuration names nothing.
MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True)
class Place:
    """One pod of one instance, and where its things lie: `logs` and `volumes` are folders of the machine, `hosts` the
    file that is the container's /etc/hosts, `cgroup` the parent of the cgroups of sandbox and container. `agent` is the
    value of the label AGENT."""

    instance: str
    uid: str
    agent: str
    logs: Path
    volumes: Path
    hosts: Path
    cgroup: str


def agent_label(state_dir: Path) -> str:
    """The value of the label AGENT for the agent that keeps its state there."""
    return hashlib.sha256(str(state_dir.absolute()).encode()).hexdigest()[:16]


def cgroup_of(uid: str, systemd: bool) -> str:
    """The parent cgroup of a pod, in the form that the cgroup driver takes."""
    return f"/kybernate.slice/kybernate-pod{uid.replace('-', '_')}.slice" if systemd else f"/kybernate-pods/pod{uid}"


def sandbox_config(workload: GpuWorkload, place: Place, attempt: int = 0) -> pb.PodSandboxConfig:
    """The sandbox of one instance; `attempt` counts how often it was made for this pod."""
    template = workload.spec.template.metadata
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(
            name=place.instance, uid=place.uid, namespace=workload.metadata.namespace, attempt=attempt
        ),
        hostname=place.instance[:63],
        log_directory=str(place.logs),
        labels={**template.labels, **_labels(workload, place)},
        annotations={**template.annotations, CONTAINERS: workload.container.name},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=place.cgroup,
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=_namespaces(),
                seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
            ),
        ),
    )


def container_config(workload: GpuWorkload, place: Place, attempt: int) -> pb.ContainerConfig:
    """The container of one instance; `attempt` counts how often it was made in this sandbox."""
    container = workload.container
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=container.name, attempt=attempt),
        image=pb.ImageSpec(image=container.image),
        command=container.command,
        args=container.args,
        working_dir=container.working_dir or "",
        envs=[pb.KeyValue(key=it.name, value=it.value) for it in container.env],
        mounts=list(_mounts(container, workload.spec.template.spec.volumes, place)),
        labels=_labels(workload, place),
        annotations=dict(workload.spec.template.metadata.annotations),
        log_path=f"{container.name}/{attempt}.log",
        linux=pb.LinuxContainerConfig(resources=_resources(container), security_context=_security(container)),
    )


def hosts_file(instance: str, addresses: Sequence[str]) -> str:
    """The pod's /etc/hosts, with its own name in it: a program that asks for it must not wait for a name server."""
    own = "".join(f"{address}\t{instance}\n" for address in addresses)
    return f"# Written by Kybernate.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}"


def empty_dirs(workload: GpuWorkload, place: Place) -> list[Path]:
    """The folders that must exist before the container is made."""
    return [place.volumes / it.name for it in workload.spec.template.spec.volumes if it.host_path is None]


def _labels(workload: GpuWorkload, place: Place) -> Mapping[str, str]:
    return {WORKLOAD: workload.name, INSTANCE: place.instance, AGENT: place.agent}


def _namespaces() -> pb.NamespaceOption:
    return pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER, ipc=pb.POD)


def _mounts(container: Container, volumes: Sequence[Volume], place: Place) -> list[pb.Mount]:
    sources = {it.name: it.host_path.path if it.host_path else str(place.volumes / it.name) for it in volumes}
    mounts = [
        pb.Mount(container_path=it.mount_path, host_path=sources[it.name], readonly=it.read_only)
        for it in container.volume_mounts
    ]
    if not any(it.mount_path.rstrip("/") in ("/etc", _HOSTS) for it in container.volume_mounts):
        mounts.append(pb.Mount(container_path=_HOSTS, host_path=str(place.hosts)))
    return mounts


def _resources(container: Container) -> pb.LinuxContainerResources:
    """Source: Kubernetes, kubelet/cm, MilliCPUToShares and MilliCPUToQuota."""
    limits, requests = container.resources.limits, container.resources.requests
    resources = pb.LinuxContainerResources()
    weight = requests.cpu or limits.cpu
    resources.cpu_shares = max(_LEAST_CPU_SHARES, weight.milli * 1024 // 1000) if weight else _LEAST_CPU_SHARES
    if limits.cpu and limits.cpu.milli:
        resources.cpu_period = _CPU_PERIOD_US
        resources.cpu_quota = max(_LEAST_CPU_QUOTA_US, limits.cpu.milli * _CPU_PERIOD_US // 1000)
    if limits.memory:
        resources.memory_limit_in_bytes = limits.memory.whole
    return resources


def _security(container: Container) -> pb.LinuxContainerSecurityContext:
    context = pb.LinuxContainerSecurityContext(
        namespace_options=_namespaces(),
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined),
    )
    if container.security_context.run_as_user is not None:
        context.run_as_user.value = container.security_context.run_as_user
    if container.security_context.run_as_group is not None:
        context.run_as_group.value = container.security_context.run_as_group
    return context
