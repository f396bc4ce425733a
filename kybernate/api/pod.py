"""The part of Kubernetes' PodTemplateSpec that runs without a cluster.

Names and meanings are Kubernetes' own. What Kubernetes has beyond it is refused by name, never ignored: a template
must not run without something that its author relies on.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from kybernate.api.kind import NOT_YET, WITHOUT_CLUSTER, AbsolutePath, Fields, Label, Port, ShortLabel, UserId, says
from kybernate.api.quantity import Quantity


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Resources(Fields, frozen=True, kw_only=True):
    """Amounts of CPU (cores) and memory (bytes)."""

    refused: ClassVar = {"nvidia.com/gpu": f"GPUs are asked for with spec.gpu, which is {NOT_YET}"}

    cpu: Annotated[Quantity | None, says("Cores; `500m` is half of one.")] = None
    memory: Annotated[Quantity | None, says("Bytes, for example `2Gi`.")] = None


class ResourceRequirements(Fields, frozen=True, kw_only=True):
    """What a container may use at most, and what it weighs in scheduling."""

    of_kubernetes: ClassVar = _names("claims")

    limits: Annotated[Resources, says("At most this much: a CPU quota, and a memory limit of the cgroup.")] = (
        Resources()
    )
    requests: Annotated[Resources, says("CPU requests become the cgroup's weight; absent: the limits.")] = Resources()


class EnvVar(Fields, frozen=True, kw_only=True):
    """One variable of a container's environment."""

    of_kubernetes: ClassVar = _names("valueFrom")

    name: Annotated[str, says("Its name.", pattern="^[^=\0]+$", extra={"expected": "a name without '='"})]
    value: Annotated[str, says("Its value, taken as it is.")] = ""


class ContainerPort(Fields, frozen=True, kw_only=True):
    """A port on which the container listens."""

    of_kubernetes: ClassVar = _names("hostIP hostPort")

    container_port: Annotated[Port, says("The port in the pod's network namespace.")]
    name: Annotated[str | None, says("What the port is called.")] = None
    protocol: Annotated[Literal["TCP"], says("Only TCP is held and woken by yet.")] = "TCP"


class VolumeMount(Fields, frozen=True, kw_only=True):
    """Where a volume of the pod appears in the container."""

    of_kubernetes: ClassVar = _names("mountPropagation recursiveReadOnly subPath subPathExpr")

    name: Annotated[Label, says("A volume in `volumes`.")]
    mount_path: Annotated[AbsolutePath, says("Where it appears.")]
    read_only: Annotated[bool, says("The container cannot write to it.")] = False


class SecurityContext(Fields, frozen=True, kw_only=True):
    """Whom the container runs as."""

    refused: ClassVar = {"privileged": "a privileged container reaches the host, so its state is not its own to keep"}
    of_kubernetes: ClassVar = _names(
        "allowPrivilegeEscalation appArmorProfile capabilities procMount readOnlyRootFilesystem runAsNonRoot "
        "seLinuxOptions seccompProfile windowsOptions"
    )

    run_as_user: Annotated[UserId | None, says("User id; absent: the image's.")] = None
    run_as_group: Annotated[UserId | None, says("Group id; absent: the image's.")] = None


_PROBE = f"probes are {WITHOUT_CLUSTER}"
_LIFECYCLE = f"lifecycle hooks are {WITHOUT_CLUSTER}"


class Container(Fields, frozen=True, kw_only=True):
    """The container that sleeps and wakes."""

    refused: ClassVar = {
        "livenessProbe": _PROBE,
        "readinessProbe": _PROBE,
        "startupProbe": _PROBE,
        "lifecycle": _LIFECYCLE,
    }
    of_kubernetes: ClassVar = _names(
        "envFrom imagePullPolicy resizePolicy restartPolicy restartPolicyRules stdin stdinOnce terminationMessagePath "
        "terminationMessagePolicy tty volumeDevices"
    )

    name: Annotated[Label, says("What the container is called.")]
    image: Annotated[str, says("The image to run.", min_length=1)]
    command: Annotated[tuple[str, ...], says("Replaces the image's entrypoint. `$(NAME)` is not expanded.")] = ()
    args: Annotated[tuple[str, ...], says("Replaces the image's arguments. `$(NAME)` is not expanded.")] = ()
    env: Annotated[tuple[EnvVar, ...], says("Added to the image's environment.")] = ()
    ports: Annotated[tuple[ContainerPort, ...], says("Where it listens; the default of `idle.ports`.")] = ()
    resources: Annotated[ResourceRequirements, says("CPU and memory.")] = ResourceRequirements()
    working_dir: Annotated[AbsolutePath | None, says("Absent: the image's.")] = None
    volume_mounts: Annotated[tuple[VolumeMount, ...], says("Volumes and where they appear.")] = ()
    security_context: Annotated[SecurityContext, says("Whom it runs as.")] = SecurityContext()


class EmptyDir(Fields, frozen=True, kw_only=True):
    """A folder that begins empty and lives as long as the instance."""

    of_kubernetes: ClassVar = _names("medium sizeLimit")


class HostPath(Fields, frozen=True, kw_only=True):
    """A folder or file of the machine."""

    of_kubernetes: ClassVar = _names("type")

    path: Annotated[AbsolutePath, says("The path on the machine; it must exist.")]


class Volume(Fields, frozen=True, kw_only=True):
    """One source of files: exactly one of emptyDir and hostPath."""

    of_kubernetes: ClassVar = _names(
        "awsElasticBlockStore azureDisk azureFile cephfs cinder configMap csi downwardAPI ephemeral fc flexVolume "
        "flocker gcePersistentDisk gitRepo glusterfs image iscsi nfs persistentVolumeClaim photonPersistentDisk "
        "portworxVolume projected quobyte rbd scaleIO secret storageos vsphereVolume"
    )

    name: Annotated[Label, says("What mounts call it.")]
    empty_dir: Annotated[EmptyDir | None, says("A folder that begins empty.")] = None
    host_path: Annotated[HostPath | None, says("A folder or file of the machine.")] = None


_HOST = "it would share with the host what an instance must have to itself"


class PodSpec(Fields, frozen=True, kw_only=True):
    """What runs in the pod."""

    refused: ClassVar = {
        "initContainers": f"init containers and sidecars are {WITHOUT_CLUSTER}",
        "hostNetwork": f"hostNetwork is refused: {_HOST}",
        "hostPID": f"hostPID is refused: {_HOST}",
        "hostIPC": f"hostIPC is refused: {_HOST}",
        "shareProcessNamespace": "is refused: the container's processes could not go away while it sleeps",
    }
    of_kubernetes: ClassVar = _names(
        "activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks "
        "ephemeralContainers hostAliases hostUsers hostname hostnameOverride imagePullSecrets nodeName nodeSelector os "
        "overhead preemptionPolicy priority priorityClassName readinessGates resourceClaims resources "
        "runtimeClassName schedulerName schedulingGates securityContext serviceAccount serviceAccountName "
        "setHostnameAsFQDN subdomain terminationGracePeriodSeconds tolerations topologySpreadConstraints"
    )

    containers: Annotated[tuple[Container, ...], says("One container.", min_length=1)]
    volumes: Annotated[tuple[Volume, ...], says("What containers can mount.")] = ()
    restart_policy: Annotated[Literal["Always", "OnFailure", "Never"], says("Always.")] = "Always"


_META_OF_KUBERNETES = _names(
    "creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName generation managedFields "
    "ownerReferences resourceVersion selfLink uid"
)


class TemplateMetadata(Fields, frozen=True, kw_only=True):
    """Labels and annotations of the pods."""

    of_kubernetes: ClassVar = _META_OF_KUBERNETES | {"name", "namespace"}

    labels: Annotated[dict[str, str], says("Labels of the pods.")] = msgspec.field(default_factory=dict)
    annotations: Annotated[dict[str, str], says("Annotations of the pods.")] = msgspec.field(default_factory=dict)


class PodTemplateSpec(Fields, frozen=True, kw_only=True):
    """The pod that each instance is."""

    metadata: Annotated[TemplateMetadata, says("Labels and annotations of the pods.")] = TemplateMetadata()
    spec: Annotated[PodSpec, says("What runs in the pod.")]


class ObjectMeta(Fields, frozen=True, kw_only=True):
    """The name of an object, and what is known about it."""

    of_kubernetes: ClassVar = _META_OF_KUBERNETES

    name: Annotated[ShortLabel, says("Instances are called after it: `chat` has `chat-0`.")]
    namespace: Annotated[Label, says("Where the pods are, as containerd's CRI knows them.")] = "default"
    labels: Annotated[dict[str, str], says("Labels of the object itself.")] = msgspec.field(default_factory=dict)
    annotations: Annotated[dict[str, str], says("Annotations of the object itself.")] = msgspec.field(
        default_factory=dict
    )
