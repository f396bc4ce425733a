"""A cluster with everything on it by `kubectl apply -k`, as a user puts it there, and a token of an agent to try."""

from __future__ import annotations

import contextlib
import json
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent_bed import APPS, THIS_RUN
from cluster_bed import ClusterBed, open_cluster
from node_bed import PYTHON_IMAGE

from kybernate.errors import ExternalError
from kybernate.lab import Image, python_image
from kybernate.lab.process import ProgramError
from kybernate.lab.product_image import ROOT, product_image

NAMESPACE = "kybernate-system"
PREFIX = "/opt/kybernate"
CONFIG = "/etc/containerd/config.toml"
ROLLOUT_SECONDS = 180.0


@contextlib.contextmanager
def deployed_cluster() -> Iterator[ClusterBed]:
    """One node, whose containerd began without our runtime."""
    with open_cluster(images=[python_image(PYTHON_IMAGE), product_image()]) as bed:
        deploy(bed)
        yield bed


def deploy(bed: ClusterBed) -> None:
    bed.kubectl("apply", "--server-side", "-k", ROOT / "deploy/base")
    await_rollout(bed)


def await_rollout(bed: ClusterBed) -> None:
    for what in ("ds/kybernate-agent", "deploy/kybernate-controller"):
        more = [f"--timeout={ROLLOUT_SECONDS:g}s", "-n", NAMESPACE]
        try:
            bed.kubectl("rollout", "status", what, *more, seconds=ROLLOUT_SECONDS + 30)
        except ProgramError as error:
            said = bed.kubectl("logs", what, "-n", NAMESPACE, "--all-containers", "--tail=40")
            raise AssertionError(f"{error}; {what} says: {said}") from None


def starts(bed: ClusterBed) -> int:
    """How often the node's containerd was started."""
    return bed.node.machine.services()["containerd"].starts


def version(bed: ClusterBed) -> str:
    """The present version on the node."""
    return Path(bed.node.run(["readlink", f"{PREFIX}/current"]).strip()).name


def keepers(bed: ClusterBed) -> set[str]:
    """The versions that keepers on the node run."""
    code = 'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = kyb-keeper ] && readlink $p/exe; done 2>/dev/null; true'
    return {Path(line).relative_to(f"{PREFIX}/versions").parts[0] for line in bed.node.run(["sh", "-c", code]).split()}


def workload(name: str, **idle: str) -> dict[str, Any]:
    """A GpuWorkload whose application counts its requests."""
    container = {
        "name": "app",
        "image": PYTHON_IMAGE,
        "command": ["/usr/bin/python3", "-u", "/apps/counting.py"],
        "env": [{"name": "TEST_RUN", "value": THIS_RUN}],
        "ports": [{"containerPort": 8080}],
        "volumeMounts": [{"name": "apps", "mountPath": "/apps", "readOnly": True}],
    }
    spec = {"containers": [container], "volumes": [{"name": "apps", "hostPath": {"path": str(APPS)}}]}
    template = {"metadata": {"labels": {"app": name}}, "spec": spec}
    whole = {"replicas": 1, "template": template, "idle": idle}
    return {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuWorkload", "metadata": {"name": name}, "spec": whole}


@contextlib.contextmanager
def running(bed: ClusterBed, *workloads: dict[str, Any]) -> Iterator[list[str]]:
    """Workloads that serve; gone at the end. Yields the addresses of their first instances."""
    names = [str(one["metadata"]["name"]) for one in workloads]
    bed.apply(*workloads)
    try:
        for name in names:
            bed.wait(f"gw/{name}")
            bed.wait(f"pod/{name}-0")
        yield [bed.pod_ip(f"{name}-0") for name in names]
    finally:
        bed.delete(*(f"gw/{name}" for name in names))
        for name in names:
            bed.wait(f"gi/{name}-0", "delete")
            bed.wait(f"pod/{name}-0", "delete")


def changed_image(folder: Path, tag: str) -> Image:
    """The image of a checkout that differs from this one in one line of the keeper."""
    for name in ("kybernate", "agent", "controller", "installer", "shim"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    with (folder / "shim/kybernate_shim/keeper.py").open("a") as keeper:
        keeper.write("\n# another version\n")
    return product_image(folder, tag)


class RefusedError(ExternalError):
    """{code}: {message}"""


class Agent:
    """Who asks the API server with an agent's own token."""

    def __init__(self, bed: ClusterBed, token: str) -> None:
        self._bed, self._token = bed, token
        context = ssl.create_default_context(cafile=bed.cluster.authority.certificate)
        https = urllib.request.HTTPSHandler(context=context)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)

    @classmethod
    def of_the_node(cls, bed: ClusterBed) -> Agent:
        """With the token that the kubelet has given to the agent's pod."""
        path = "/var/run/secrets/kubernetes.io/serviceaccount/token"
        return cls(bed, bed.kubectl("exec", "-n", NAMESPACE, "ds/kybernate-agent", "--", "cat", path).strip())

    def create(self, path: str, item: dict[str, Any]) -> None:
        """Raises RefusedError."""
        self._ask("POST", path, item, "application/json")

    def patch(self, path: str, change: dict[str, Any]) -> None:
        """Raises RefusedError."""
        self._ask("PATCH", path, change, "application/merge-patch+json")

    def _ask(self, method: str, path: str, body: dict[str, Any], kind: str) -> None:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        url = f"{self._bed.cluster.plan.server}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)
        try:
            self._opener.open(request, timeout=30).close()
        except urllib.error.HTTPError as error:
            raise RefusedError(code=error.code, message=json.load(error)["message"]) from error
