"""A real cluster for tests, and short ways to ask and to tell it.

`cluster_bed` (a session's fixture) is one node whose containerd has the runtime `kybernate`; many tests share it, with
objects of names of their own. Who needs other nodes, or takes one away, opens a cluster with `open_cluster`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from agent_bed import eventually
from node_bed import PYTHON_IMAGE

from kybernate.errors import KybernateError
from kybernate.lab import Image, python_image
from kybernate.lab.clean import TEST_CLUSTERS, remove_dead_clusters
from kybernate.lab.cluster import Cluster, Node, Patience

CLASS = "kybernate"
"""The RuntimeClass of `runtime_class`, and the handler of the node's containerd."""
_numbers = itertools.count(1)
_open: list[ClusterBed] = []


class ClusterBed:
    """A cluster and what tests do with it all the time."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @property
    def node(self) -> Node:
        """The first node."""
        return self.cluster.nodes[0]

    def kubectl(self, *words: str | Path, stdin: str | None = None, seconds: float = 120) -> str:
        return self.cluster.kubectl(*words, stdin=stdin, deadline_seconds=seconds)

    def apply(self, *manifests: dict[str, Any] | str) -> None:
        """Apply manifests, each an object or YAML."""
        texts = [text if isinstance(text, str) else yaml.safe_dump(text) for text in manifests]
        self.kubectl("apply", "-f", "-", stdin="\n---\n".join(texts))

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        """The object. Raises ProgramError where there is none."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json"))
        return found

    def items(self, kind: str, *words: str, namespace: str = "default") -> list[dict[str, Any]]:
        """All objects of a kind; `words` are more for kubectl, as -l app=web."""
        said = self.kubectl("get", kind, "-n", namespace, *words, "-o", "json")
        return list(json.loads(said)["items"])

    def wait(self, what: str, condition: str = "Ready", namespace: str = "default", seconds: float = 120) -> None:
        """Wait for a condition of `what` (pod/web), or for another form of kubectl's --for (delete, jsonpath=...)."""
        wanted = condition if "=" in condition or condition in ("delete", "create") else f"condition={condition}"
        more = [f"--timeout={seconds:g}s", "-n", namespace]
        self.kubectl("wait", f"--for={wanted}", what, *more, seconds=seconds + 30)

    def delete(self, *what: str, namespace: str = "default", seconds: float = 120) -> None:
        """Delete objects (pod/web, service/web) and wait until they are gone."""
        self.kubectl("delete", "--ignore-not-found", "-n", namespace, *what, seconds=seconds)

    def pod_ip(self, name: str, namespace: str = "default") -> str:
        return str(self.get("pod", name, namespace)["status"]["podIP"])

    def runtime_class(self) -> None:
        """The RuntimeClass, for pods that are to be ours without the deployment that brings it."""
        meta = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": CLASS}}
        self.apply({**meta, "handler": CLASS})

    def state(self) -> str:
        """What one wants to read after a failure."""
        parts = []
        for words in (
            ["get", "nodes,pods,services,endpointslices", "-A", "-o", "wide"],
            ["get", "events", "-A", "--sort-by=.lastTimestamp"],
            ["describe", "pods", "-n", "default"],
        ):
            with contextlib.suppress(KybernateError):
                parts.append(f"$ kubectl {' '.join(words)}\n{self.kubectl(*words, seconds=20)[-6000:]}")
        machines = [self.cluster.control_plane, *(node.machine for node in self.cluster.nodes)]
        for machine in machines:
            logs = sorted(machine.logs.glob("*")) if machine.logs.exists() else []
            parts += [f"== {machine.name}/{log.name}\n{machine.log_tail(log.name, 1500)}" for log in logs]
        return "\n\n".join(parts)


def pod(name: str, *, command: Sequence[str] | None = None, image: str = PYTHON_IMAGE, **spec: Any) -> dict[str, Any]:
    """A pod with one container `app` and the label app=NAME. By default it serves HTTP on 8080."""
    container = {
        "name": "app",
        "image": image,
        "command": list(command or ["/usr/bin/python3", "-u", "-m", "http.server", "8080"]),
        "ports": [{"containerPort": 8080}],
        **spec.pop("container", {}),
    }
    meta = {"name": name, "labels": {"app": name}}
    whole = {"containers": [container], "terminationGracePeriodSeconds": 1, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": whole}


def service(name: str, port: int = 80, target: int = 8080) -> dict[str, Any]:
    """A Service over the pods with the label app=NAME."""
    spec = {"selector": {"app": name}, "ports": [{"port": port, "targetPort": target}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


@contextlib.contextmanager
def open_cluster(
    *,
    nodes: int = 1,
    guests: int = 0,
    runtime: bool = False,
    patience: Patience | None = None,
    images: Sequence[Image] | None = None,
) -> Iterator[ClusterBed]:
    """A cluster of its own for the block, with PYTHON_IMAGE on its nodes. What killed sessions left is removed."""
    remove_dead_clusters()
    name = f"{TEST_CLUSTERS}{os.getpid()}-{next(_numbers)}"
    cluster = Cluster(Path("/var/tmp", name), name, nodes=nodes, guests=guests, runtime=runtime, patience=patience)
    bed = ClusterBed(cluster)
    try:
        cluster.up(images=[python_image(PYTHON_IMAGE)] if images is None else images)
        _open.append(bed)
        yield bed
    finally:
        if bed in _open:
            _open.remove(bed)
        cluster.down()


@contextlib.contextmanager
def open_shared_bed() -> Iterator[ClusterBed]:
    """One node with the runtime, and its RuntimeClass."""
    with open_cluster(runtime=True) as bed:
        bed.runtime_class()
        yield bed


def open_beds() -> list[ClusterBed]:
    """The clusters that are up now; a failing test shows their state."""
    return list(_open)


__all__ = ["CLASS", "PYTHON_IMAGE", "ClusterBed", "eventually", "open_cluster", "pod", "service"]
