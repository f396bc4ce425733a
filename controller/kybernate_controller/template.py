"""The pod that an instance is: the workload's template, and what Kybernate adds to it.

    labels        kybernate.io/workload, instance, template-hash
    annotations   kybernate.io/containers (whom the shim manages), state-node (the node to which the pod is bound),
                  avoids (nodes that can take no new one), requests (what the managed container asked for, to be
                  restored after a park); no others of the group but those that a template may carry
    spec          runtimeClassName; the readiness gate kybernate.io/serving, where sleepers may have to leave a Service;
                  required node affinity by the node's name, to where state lies, else away from who can take no new
                  one; it tolerates a node that is silent for as long as that is: nothing is made elsewhere meanwhile,
                  and a parked container comes back best in its own pod, whose writable layer is still there

The hash is of the template's meaning, not of its bytes, so that a newer API server that writes it otherwise replaces
nobody. What Kybernate adds is not part of it: it may change from one version to the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate_controller.template_shape import slip

HASH_LENGTH = 10
OURS = f"{names.GROUP}/"
SILENT = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""Taints of a node that does not answer. A pod that says nothing of them is evicted after five minutes."""


@dataclass(frozen=True)
class Template:
    """What a workload says about its pods, read once for a plan."""

    hash: str
    container: str
    """The one that sleeps; empty where `problem` says why that is not known."""
    ports: list[int]
    body: dict[str, Any]
    problem: str = ""


def read(workload: GpuWorkloadObject) -> Template:
    """The template, whatever is in it: the API server has the last word about pods."""
    body = msgspec.json.decode(workload.spec.template)
    declared = list(workload.spec.containers or ())
    meaning = msgspec.json.encode([body, declared], order="deterministic")
    digest = hashlib.sha256(meaning).hexdigest()[:HASH_LENGTH]
    if problem := slip(body):
        return Template(digest, "", [], body, problem)
    spec = body.get("spec") or {}
    containers = {c.get("name", ""): c for c in spec.get("containers") or ()}
    chosen, problem = _chosen(declared, list(containers))
    ports = [
        port["containerPort"]
        for port in containers.get(chosen, {}).get("ports") or ()
        if port.get("protocol", "TCP") == "TCP" and isinstance(port.get("containerPort"), int)
    ]
    return Template(digest, chosen, list(dict.fromkeys(ports)), body, problem)


def _chosen(declared: list[str], existing: list[str]) -> tuple[str, str]:
    """The container that sleeps, or what is wrong."""
    if len(declared) > 1:
        return "", f"spec.containers: only one container of a pod can sleep yet, got {', '.join(declared)}"
    if declared and declared[0] not in existing:
        return "", f"spec.containers: no container of the template is called {declared[0]}"
    if declared:
        return declared[0], ""
    if len(existing) == 1:
        return existing[0], ""
    if not existing:
        return "", "spec.template.spec.containers: expected at least one"
    return "", f"spec.containers: say which of the template's containers sleeps: {', '.join(existing)}"


def owner_reference(workload: GpuWorkloadObject) -> dict[str, Any]:
    """What a workload's pods and GpuInstances carry, so that they go with it."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "GpuWorkload",
        "name": workload.metadata.name,
        "uid": workload.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def pod(
    workload: GpuWorkloadObject, template: Template, name: str, node: str = "", avoid: Collection[str] = ()
) -> dict[str, Any]:
    """The pod `name`, bound to `node` where that is not empty, else to none of those to `avoid`."""
    body = msgspec.json.decode(msgspec.json.encode(template.body))
    metadata, spec = body.get("metadata") or {}, body.get("spec") or {}
    annotations = {
        key: value
        for key, value in (metadata.get("annotations") or {}).items()
        if not key.startswith(OURS) or key in names.TEMPLATE_ANNOTATIONS
    }
    annotations[names.CONTAINERS] = template.container
    if node:
        annotations[names.STATE_NODE] = node
    elif avoid:
        annotations[names.AVOIDS] = ",".join(avoid)
    if requests := _requests(spec, template.container):
        annotations[names.REQUESTS] = msgspec.json.encode(requests, order="sorted").decode()
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if not key.startswith(OURS)}
    labels |= {names.WORKLOAD: workload.metadata.name, names.INSTANCE: name, names.TEMPLATE_HASH: template.hash}
    spec["runtimeClassName"] = names.RUNTIME_HANDLER
    if gated(workload):
        gates = [gate for gate in spec.get("readinessGates") or () if gate.get("conditionType") != names.SERVING]
        spec["readinessGates"] = [*gates, {"conditionType": names.SERVING}]
    if node:
        bind(spec, node)
    elif avoid:
        _by_name(spec, [{"key": "metadata.name", "operator": "NotIn", "values": [one]} for one in avoid])
    stay(spec)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": workload.metadata.namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(workload)],
        },
        "spec": spec,
    }


def gated(workload: GpuWorkloadObject) -> bool:
    """Whether new pods get the readiness gate: a single instance never leaves its Service."""
    return workload.spec.traffic == "Pack" and workload.spec.replicas > 1


def _requests(spec: dict[str, Any], container: str) -> dict[str, str]:
    """CPU and memory that the container asks for; where it names limits only, Kubernetes takes those for requests."""
    for declared in spec.get("containers") or ():
        if declared.get("name") == container:
            resources = declared.get("resources") or {}
            amounts = (resources.get("limits") or {}) | (resources.get("requests") or {})
            return {name: str(amounts[name]) for name in ("cpu", "memory") if name in amounts}
    return {}


def stay(spec: dict[str, Any]) -> None:
    """Have the pod wait for a silent node, where the template does not say how long.

    Source: kubernetes, plugin/pkg/admission/defaulttolerationseconds.
    """
    told = list(spec.get("tolerations") or ())
    known = {one.get("key", "") for one in told if one.get("effect", "") in ("", "NoExecute")}
    if "" not in known:
        told += [{"key": key, "operator": "Exists", "effect": "NoExecute"} for key in SILENT if key not in known]
    if told:
        spec["tolerations"] = told


def bind(spec: dict[str, Any], node: str) -> None:
    """Let only `node` take the pod."""
    _by_name(spec, [{"key": "metadata.name", "operator": "In", "values": [node]}])


def _by_name(spec: dict[str, Any], fields: list[dict[str, Any]]) -> None:
    """Require all of `fields` of the node, besides what the template does. Its hostname label may not be its name; and
    a field is compared with one value at a time, says Kubernetes."""
    affinity = spec.setdefault("affinity", None) or {}
    node_affinity = affinity.get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    # Terms are alternatives, so each one gets the fields.
    given: list[dict[str, Any]] = required.get("nodeSelectorTerms") or [{}]
    terms = [dict(term) for term in given]
    for alternative in terms:
        alternative["matchFields"] = [*(alternative.get("matchFields") or ()), *fields]
    node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = required | {"nodeSelectorTerms": terms}
    affinity["nodeAffinity"] = node_affinity
    spec["affinity"] = affinity
