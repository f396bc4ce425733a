"""A pod like another one: what of a pod's spec is its own, and what others put in. Pure.

Taken out is what the scheduler, admission, the kubelet and controllers add: node, priority number, overhead, the
token that every pod gets, the labels by which a Deployment or Job knows its pods, the readiness gate and the node
affinity of a replica, debug containers. Requests that were lowered while the instance was parked are put back.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import msgspec

from kybernate.api import names
from kybernate.api.objects import Metadata
from kybernate_controller.template import OURS, bind

DROPPED = ("nodeName", "priority", "preemptionPolicy", "overhead", "serviceAccount", "ephemeralContainers",
           "schedulingGates", "resourceClaims", "resources")  # fmt: skip
TOKEN = "kube-api-access-"  # noqa: S105  the prefix of the volume's name
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105
OF_CONTROLLERS = frozenset(
    {
        "pod-template-hash", "pod-template-generation", "controller-revision-hash", "apps.kubernetes.io/pod-index",
        "statefulset.kubernetes.io/pod-name", "controller-uid", "job-name",
    }
)  # fmt: skip
"""Labels by which Kubernetes' own controllers know their pods: one without an owner that has them is adopted, counts as
one too many, and is deleted. All of `batch.kubernetes.io/` are such, too."""
LABEL_LENGTH = 63


def template_of(pod: Mapping[str, Any]) -> dict[str, Any]:
    """A PodTemplateSpec of the pod."""
    metadata = pod["metadata"]
    spec = {key: copy.deepcopy(value) for key, value in pod["spec"].items() if key not in DROPPED}
    annotations = metadata.get("annotations") or {}
    _without_token(spec)
    _with_requests(spec, annotations)
    if annotations.get(names.STATE_NODE):
        _unbind(spec, annotations[names.STATE_NODE])
    gates = [it for it in spec.pop("readinessGates", None) or () if it.get("conditionType") != names.SERVING]
    if gates:
        spec["readinessGates"] = gates
    labels = {
        k: v
        for k, v in (metadata.get("labels") or {}).items()
        if k not in OF_CONTROLLERS and not k.startswith((OURS, "batch.kubernetes.io/"))
    }
    kept = {
        k: v
        for k, v in annotations.items()
        if k in names.TEMPLATE_ANNOTATIONS or k == names.CONTAINERS or not k.startswith(OURS)
    }
    kept.pop("kubectl.kubernetes.io/last-applied-configuration", None)
    return {"metadata": {"labels": labels, "annotations": kept}, "spec": spec}


def _without_token(spec: dict[str, Any]) -> None:
    """Admission gives the new pod one of its own."""
    gone = {v["name"] for v in spec.get("volumes") or () if v["name"].startswith(TOKEN) and "projected" in v}
    if not gone:
        return
    spec["volumes"] = [v for v in spec["volumes"] if v["name"] not in gone]
    for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        mounts = container.get("volumeMounts") or []
        container["volumeMounts"] = [
            m for m in mounts if not (m["name"] in gone and m.get("mountPath") == TOKEN_PATH)
        ]  # fmt: skip


def _with_requests(spec: dict[str, Any], annotations: Mapping[str, str]) -> None:
    """What the managed container asked for before it was parked."""
    try:
        asked = msgspec.json.decode(annotations.get(names.REQUESTS, "{}"), type=dict[str, str])
    except msgspec.MsgspecError:
        return
    for container in spec.get("containers") or ():
        if asked and container["name"] == annotations.get(names.CONTAINERS):
            resources = container.setdefault("resources", {})
            resources["requests"] = {**(resources.get("requests") or {}), **asked}


def _unbind(spec: dict[str, Any], node: str) -> None:
    """Take out what `bind` has put in."""
    required = (
        (spec.get("affinity") or {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    )
    for term in (required or {}).get("nodeSelectorTerms") or ():
        fields = [f for f in term.get("matchFields") or () if f.get("values") != [node]]
        term.pop("matchFields", None)
        if fields:
            term["matchFields"] = fields
    if required and not any(required["nodeSelectorTerms"]):
        del spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]


def pod_of(template: Mapping[str, Any], *, name: str, namespace: str, node: str, job: str, uid: str) -> dict[str, Any]:
    """The pod that a restore job makes: owned by nobody, bound to the node, told from all others by the job's uid."""
    body = copy.deepcopy(dict(template))
    metadata, spec = body.get("metadata") or {}, body["spec"]
    bind(spec, node)
    spec["runtimeClassName"] = names.RUNTIME_HANDLER
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**(metadata.get("labels") or {}), names.INSTANCE: name, names.RESTORE_JOB: label_of(job)},
            "annotations": {
                **(metadata.get("annotations") or {}), names.STATE_NODE: node, **of_job(job, uid),
            },
        },
        "spec": spec,
    }  # fmt: skip


def of_job(job: str, uid: str) -> dict[str, str]:
    """The annotations of what a job makes."""
    return {names.RESTORE_JOB_NAME: job, names.RESTORE_JOB_UID: uid}


def label_of(job: str) -> str:
    return job[:LABEL_LENGTH].rstrip("-.")


def is_of(metadata: Metadata, uid: str) -> bool:
    """Whether the job of that uid has made it."""
    return metadata.annotations.get(names.RESTORE_JOB_UID) == uid


def instance_of(
    meta: Metadata, policy: Mapping[str, Any], *, manifest: str, node: str, job: str, uid: str
) -> dict[str, Any]:
    """The GpuInstance of the pod that was made: it goes with it, and begins with the manifest or not at all."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid}
    kept = {k: v for k, v in policy.items() if k != "keepAwake"}
    return {
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "labels": {names.RESTORE_JOB: label_of(job)},
            "annotations": of_job(job, uid),
            "ownerReferences": [owner],
            "finalizers": [names.STATE_FINALIZER],
        },
        "spec": {
            "nodeName": node,
            "pod": meta.name,
            "podUID": meta.uid,
            "epoch": 1,
            "policy": kept | {"onStateLost": "Hold"},
            "restoreFrom": manifest,
        },
    }
