"""Which objects a request is about: the API server's word for a kind, and the path where it serves them.

/api/v1/namespaces/<namespace>/pods/<name>/status                       the core group, ""
/apis/kybernate.io/v1alpha1/namespaces/<namespace>/gpuworkloads/<name>  every other group
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from kybernate.errors import InvalidError


class SegmentError(InvalidError):
    """{text!r} is no name of an object or namespace. Names are of lower case letters, digits, '-' and '.'."""


@dataclass(frozen=True)
class Resource:
    """One kind as the API server serves it; `plural` may stand for itself in messages and metrics."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of one object, or of the collection where `name` is None (of all namespaces where both are).

        Raises SegmentError.
        """
        parts = ["/apis" if self.group else "/api", self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", _segment(namespace)]
        parts.append(self.plural)
        if name is not None:
            if self.namespaced and not namespace:
                raise SegmentError(text=namespace or "")
            parts.append(_segment(name))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _segment(text: str) -> str:
    """`text` as one part of a path, so that no name leads elsewhere."""
    if text in {"", ".", ".."} or "/" in text or "%" in text:
        raise SegmentError(text=text)
    return quote(text, safe="")


PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
EVENTS = Resource("", "v1", "events", "Event")
POD_TEMPLATES = Resource("", "v1", "podtemplates", "PodTemplate")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS = Resource("", "v1", "secrets", "Secret")
SERVICES = Resource("", "v1", "services", "Service")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
GPU_WORKLOADS = Resource("kybernate.io", "v1alpha1", "gpuworkloads", "GpuWorkload")
GPU_INSTANCES = Resource("kybernate.io", "v1alpha1", "gpuinstances", "GpuInstance")
GPU_CHECKPOINTS = Resource("kybernate.io", "v1alpha1", "gpucheckpoints", "GpuCheckpoint")
GPU_RESTORE_JOBS = Resource("kybernate.io", "v1alpha1", "gpurestorejobs", "GpuRestoreJob")
GPU_NODES = Resource("kybernate.io", "v1alpha1", "gpunodes", "GpuNode", namespaced=False)
