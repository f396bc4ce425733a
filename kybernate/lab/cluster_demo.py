"""`./dev demo --cluster`: the quick start of the README on a real Kubernetes cluster, live, on this machine.

Control plane, node, containerd and runc are the real ones; Kybernate is put on the cluster as anybody would do it, with
`kubectl apply -k deploy/base`. What should hold and does not ends the demo with an error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kybernate.errors import KybernateError
from kybernate.lab import examples
from kybernate.lab.cluster import Cluster
from kybernate.lab.cluster.cluster import past_proxies
from kybernate.lab.demo import (
    EXAMPLE,
    Answer,
    DemoError,
    NotRootError,
    Show,
    answer_of,
    duration,
    first_answer,
    timed,
)
from kybernate.lab.node import alone, checked
from kybernate.lab.product_image import product_image

ROOT = EXAMPLE.parents[1]
SERVICE_PORT = 80
STATE_SECONDS = 120.0
INSTALL_SECONDS = "180s"


class ClusterDemo:
    """The story, on a cluster that is up."""

    def __init__(self, cluster: Cluster, show: Show) -> None:
        self._cluster, self._show = cluster, show
        self._address = ""

    def install(self) -> None:
        kubectl = self._cluster.kubectl
        timed(self._show, "kubectl apply", lambda: self._installed(kubectl), "-k deploy/base: agent and controller run")

    def _installed(self, kubectl: Callable[..., str]) -> None:
        kubectl("apply", "--server-side", "-k", ROOT / "deploy" / "base")
        for what in ("daemonset/kybernate-agent", "deployment/kybernate-controller"):
            wait = f"--timeout={INSTALL_SECONDS}"
            kubectl("-n", "kybernate-system", "rollout", "status", what, wait, deadline_seconds=200)

    def tell(self) -> None:
        cold, first = self._cold_start()
        self._show.line("idle", None, "nobody calls; suspendAfter is 3 s, parkAfter 4 s")
        self._until("Suspended")
        self._table()
        ram = self._wake("RAM", first)
        self._until("Parked")
        self._table()
        ready = self._cluster.kubectl(
            "get", "pod", "chat-0", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].ready}"
        )
        self._check(ready == "Running true", f"the pod of the sleeper is {ready}")
        self._show.line("the pod", None, "is Running and ready all the time; its memory is free")
        nvme = self._wake("NVME", ram)
        print(
            f"\n    cold start   {duration(cold):>8}\n    from NVME    {duration(nvme.seconds):>8}   "
            f"{cold / nvme.seconds:.0f} times as fast\n    from RAM     {duration(ram.seconds):>8}   "
            f"{cold / ram.seconds:.0f} times as fast\n",
            flush=True,
        )

    def _cold_start(self) -> tuple[float, Answer]:
        kubectl, began = self._cluster.kubectl, time.monotonic()
        kubectl("apply", "-f", EXAMPLE / "workload.yaml", "-f", EXAMPLE / "service.yaml")
        self._address = kubectl("get", "service", "chat", "-o", "jsonpath={.spec.clusterIP}").strip()
        answer = first_answer(self._address, SERVICE_PORT, STATE_SECONDS)
        cold = time.monotonic() - began
        self._show.line("cold start", cold, "from `kubectl apply` of a GpuWorkload to the first answer of its Service")
        return cold, answer

    def _wake(self, tier: str, before: Answer) -> Answer:
        answer = answer_of(self._address, SERVICE_PORT)
        same = answer.ranking == before.ranking and answer.requests == before.requests + 1
        self._check(same, f"after {tier} the server answered {answer}, before it {before}")
        woken = self._until("Running")["status"]["lastWake"]["from"]
        self._check(woken == tier, f"it was woken from {woken}, not from {tier}")
        self._show.line(f"woken from {tier}", answer.seconds, f"by a call to the Service; request {answer.requests}")
        return answer

    def _until(self, state: str) -> dict[str, Any]:
        """The GpuInstance as soon as it is in this state."""
        limit = time.monotonic() + STATE_SECONDS
        found: dict[str, Any] = {}
        while time.monotonic() < limit:
            found = json.loads(self._cluster.kubectl("get", "gpuinstance", "chat-0", "-o", "json"))
            now = found.get("status", {}).get("state")
            self._check(now != "StateLost", "its state is lost")
            if now == state:
                return found
            time.sleep(0.1)
        raise DemoError(f"chat-0 was not {state} within {STATE_SECONDS:g} s: {json.dumps(found.get('status'))}")

    def _table(self) -> None:
        for line in self._cluster.kubectl("get", "gpuworkloads,gpuinstances").splitlines():
            print(f"              {line}", flush=True)

    def delete(self) -> None:
        self._cluster.kubectl("delete", "-f", EXAMPLE / "workload.yaml", "-f", EXAMPLE / "service.yaml", "--wait")

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise DemoError(otherwise)


def go_on(cluster: Cluster) -> str:
    return f"""It goes on. By hand, as root:
    export KUBECONFIG={cluster.kubeconfig}
    export PATH=$PATH:{cluster.programs}:{Path(sys.executable).parent}{past_proxies(cluster.plan)}
    kubectl get gw,gi
    kubectl kybernate describe chat
`./dev clean` ends it and removes everything."""


def run_cluster_demo(keep: bool, name: str) -> None:
    """Raises KybernateErrors; leaves nothing behind, unless it succeeds and `keep` is wanted."""
    checked(name)
    if os.geteuid() != 0:
        raise NotRootError
    with alone(name):
        _on_cluster(Cluster(Path("/var/tmp", name), name), Show(), keep)


def _on_cluster(cluster: Cluster, show: Show, keep: bool) -> None:
    show.line("images", None, "of the model server and of Kybernate, without a registry (the first time: a minute)")
    server, product = timed(show, "images ready", lambda: (examples.model_server(), product_image()))
    kept = False
    try:
        told: Callable[[str], None] = lambda line: show.line("cluster", None, line)  # noqa: E731
        timed(show, "cluster ready", lambda: cluster.up([server, product], say=told), "etcd, Kubernetes, one node")
        demo = ClusterDemo(cluster, show)
        demo.install()
        demo.tell()
        if keep:
            print(go_on(cluster))
            kept = True
            return
        timed(show, "deleted", demo.delete)
    except KybernateError:
        print(f"\n{_what_is_there(cluster)}", file=sys.stderr)
        raise
    finally:
        if not kept:
            timed(show, "cleaned up", cluster.down, "nothing is left")


def _what_is_there(cluster: Cluster) -> str:
    """For whoever wants to know why; nothing where the cluster does not answer."""
    try:
        pods = cluster.kubectl("get", "pods,gpuworkloads,gpuinstances", "--all-namespaces", "-o", "wide")
        events = cluster.kubectl("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp")
    except (KybernateError, OSError, subprocess.SubprocessError):
        return ""
    return f"{pods}\n{events[-4000:]}"
