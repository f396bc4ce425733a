"""On Kubernetes: a wake through a Service, apply to Ready, how soon kubectl sees a change, and what a transition costs.

One cluster of one node with Kybernate deployed as anybody would (`kubectl apply -k deploy/base`), and beside it a
private containerd with an agent and no Kubernetes, as in `wake`. Both run at the same time, their runs in turns: a
freezer of 64 MiB parked in each, one called by the Service's address, the other by its pod's. A GpuWorkload and a plain
Deployment of the same image are applied in turns, from the POST to the pod's condition Ready. Requests are what
controller and agent themselves count as sent, leases left out, over transitions that are orders and calls.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import freezer
from bench.harness import Row, command, compared, limit, note
from bench.node import node
from kybernate.errors import DeadlineError
from kybernate.lab.cluster import Cluster
from kybernate.lab.product_image import product_image

SIZE_MIB = 64
WAKE_BAR = 1.1
READY_BAR = 1.2
SEEN_MS = 500.0
REQUESTS = 3.0
_RUNS = 10
_TRANSITIONS = 20
_LIMIT_SECONDS = 120.0
_BASE = Path(__file__).resolve().parents[1] / "deploy" / "base"
_GROUP = "/apis/kybernate.io/v1alpha1/namespaces/default"
_PODS = "/api/v1/namespaces/default/pods"
_QUIET_SECONDS = 5.0


class LateError(DeadlineError):
    """{what}: not within {seconds:g} s"""


class Deployed:
    """The cluster, asked over one API."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.api = cluster, cluster.api

    def install(self) -> None:
        kubectl = self.cluster.kubectl
        kubectl("apply", "--server-side", "-k", _BASE)
        for what in ("daemonset/kybernate-agent", "deployment/kybernate-controller"):
            kubectl("-n", "kybernate-system", "rollout", "status", what, "--timeout=180s", deadline_seconds=200)

    @contextlib.contextmanager
    def workload(self, name: str) -> Iterator[str]:
        """A freezer as a GpuWorkload; gives its Service's address."""
        self.api.request("POST", f"{_GROUP}/gpuworkloads", _workload(name))
        spec = {"selector": {"kybernate.io/workload": name}, "ports": [{"port": freezer.PORT}]}
        service = {"metadata": {"name": name}, "spec": spec}
        address = self.api.request("POST", "/api/v1/namespaces/default/services", service)["spec"]["clusterIP"]
        try:
            until(lambda: ready(self.pod(f"{name}-0")), f"{name}-0 is Ready")
            yield str(address)
        finally:
            self.api.request("DELETE", f"/api/v1/namespaces/default/services/{name}")
            self.api.request("DELETE", f"{_GROUP}/gpuworkloads/{name}")
            until(lambda: not self.pod(f"{name}-0"), f"{name}-0 is gone")

    def pod(self, name: str) -> Any:
        items = self.api.get(f"{_PODS}?fieldSelector=metadata.name%3D{name}")["items"]
        return items[0] if items else None

    def state(self, name: str) -> str:
        return str(self.api.get(f"{_GROUP}/gpuinstances/{name}").get("status", {}).get("state", ""))

    def order(self, verb: str, name: str, state: str) -> None:
        patch = {"metadata": {"annotations": {"kybernate.io/order": f"{verb} {time.monotonic_ns()}"}}}
        self.api.request("PATCH", f"{_GROUP}/gpuinstances/{name}", patch, "application/merge-patch+json")
        until(lambda: self.state(name) == state, f"{name} is {state}")

    def requests(self) -> float:
        """What agent and controllers have sent so far, but for leases and watches."""
        pods = self.api.get("/api/v1/namespaces/kybernate-system/pods")["items"]
        addresses = [
            f"{pod['status']['podIP']}:8081"
            for pod in pods
            if pod["metadata"]["name"].startswith("kybernate-controller")
        ]
        said = "".join(self._metrics(f"http://{address}/metrics") for address in [*addresses, "127.0.0.1:9815"])
        counted = re.findall(
            r'^kybernate_(?:controller_)?api_requests_total\{verb="(\w+)",resource="(\S+)"\} (\S+)$', said, re.M
        )
        return sum(float(n) for verb, kind, n in counted if verb != "watch" and not kind.startswith("leases"))

    def _metrics(self, address: str) -> str:
        return self.cluster.nodes[0].run(["curl", "--silent", "--fail", "--noproxy", "*", address])


def measure(root: Path) -> list[Row]:
    name = "kyb-bench-cluster"
    cluster = Cluster(root / "cluster", name)
    try:
        cluster.up(images=[freezer.image(), product_image()], say=note)
        deployed = Deployed(cluster)
        deployed.install()
        rows = [_wake(root, deployed), _ready(deployed)]
        with deployed.workload("costs") as address:
            return [*rows, _seen(deployed, address), _requests(deployed, address)]
    finally:
        cluster.down()


def _wake(root: Path, deployed: Deployed) -> Row:
    ours: list[float] = []
    alone: list[float] = []
    text = f"kept-{time.time_ns()}"
    with node(root) as machine, machine.sleeper("alone", SIZE_MIB) as sleeper, deployed.workload("served") as address:
        freezer.remember(address, text)
        for number in range(_RUNS + 1):
            sleeper.park()
            deployed.order("park", "served-0", "Parked")
            time.sleep(1)  # what parking leaves to do
            alone.append(sleeper.wake())
            ours.append(freezer.woken(address, text))
            note(f"wake {number}: by Service {ours[-1]:.0f} ms, by pod IP without Kubernetes {alone[-1]:.0f} ms")
            until(lambda: deployed.state("served-0") == "Running", "it runs")
    name = "by pod IP without Kubernetes"
    return compared(f"wake through a Service, NVME {SIZE_MIB} MiB", ours[1:], name, {name: alone[1:]}, WAKE_BAR)


def _ready(deployed: Deployed) -> Row:
    """The first pair warms up what both use."""
    ours: list[float] = []
    plain: list[float] = []
    for number in range(_RUNS + 1):
        pair = [(ours, _apply_workload), (plain, _apply_deployment)]
        for times, apply in pair if number % 2 else reversed(pair):
            times.append(apply(deployed, f"ready-{number}"))
        note(f"apply to Ready {number}: GpuWorkload {ours[-1]:.0f} ms, Deployment {plain[-1]:.0f} ms")
    name = "Deployment"
    return compared("apply to Ready", ours[1:], name, {name: plain[1:]}, READY_BAR)


def _apply_workload(deployed: Deployed, name: str) -> float:
    path = f"{_GROUP}/gpuworkloads"
    return _applied(deployed, path, _workload(name), f"kybernate.io/workload%3D{name}")


def _apply_deployment(deployed: Deployed, name: str) -> float:
    template = {"metadata": {"labels": {"app": name}}, **_template()}
    body = {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": name}}, "template": template}}
    return _applied(deployed, "/apis/apps/v1/namespaces/default/deployments", body, f"app%3D{name}")


def _applied(deployed: Deployed, path: str, body: dict[str, Any], selector: str) -> float:
    """Milliseconds from the POST until its pod is Ready; then it is deleted, and gone."""
    pods = f"{_PODS}?labelSelector={selector}"
    began = time.perf_counter()
    deployed.api.request("POST", path, body)
    until(lambda: any(map(ready, deployed.api.get(pods)["items"])), f"{path} is Ready")
    spent = (time.perf_counter() - began) * 1000
    deployed.api.request("DELETE", f"{path}/{body['metadata']['name']}?propagationPolicy=Background")
    until(lambda: not deployed.api.get(pods)["items"], "its pod is gone")
    return spent


def _seen(deployed: Deployed, address: str) -> Row:
    """From the reply of a call that woke it until the workload's status counts it as awake."""
    spent = []
    for _ in range(_RUNS):
        deployed.order("suspend", "costs-0", "Suspended")
        until(lambda: _awake(deployed) == 0, "the workload counts it as asleep")
        freezer.ask(address)
        began = time.perf_counter()
        until(lambda: _awake(deployed) == 1, "the workload counts it as awake")
        spent.append((time.perf_counter() - began) * 1000)
    return limit("status change to kubectl get gw", statistics.median(spent), "ms", SEEN_MS)


def _awake(deployed: Deployed) -> int:
    return int(deployed.api.get(f"{_GROUP}/gpuworkloads/costs")["status"].get("awake", 0))


def _requests(deployed: Deployed, address: str) -> Row:
    """Each round is two transitions: down to RAM by an order, and up by a call. The order's answer is part of it."""
    time.sleep(_QUIET_SECONDS)
    before = deployed.requests()
    time.sleep(_QUIET_SECONDS)
    quiet = deployed.requests() - before
    note(f"requests in {_QUIET_SECONDS:g} quiet seconds: {quiet:g}")
    before = deployed.requests()
    for _ in range(_TRANSITIONS // 2):
        deployed.order("suspend", "costs-0", "Suspended")
        freezer.ask(address)
        until(lambda: deployed.state("costs-0") == "Running", "it runs")
    time.sleep(_QUIET_SECONDS)
    each = (deployed.requests() - before) / _TRANSITIONS
    return limit("API requests per transition", each, "requests", REQUESTS)


def ready(pod: Any) -> bool:
    conditions = (pod or {}).get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def until(holds: Callable[[], object], what: str) -> None:
    """Look every 10 ms. Raises LateError."""
    end = time.monotonic() + _LIMIT_SECONDS
    while not holds():
        if time.monotonic() > end:
            raise LateError(what=what, seconds=_LIMIT_SECONDS)
        time.sleep(0.01)


def _template() -> dict[str, Any]:
    container = {
        "name": "freezer",
        "image": freezer.image().name,
        "command": ["/freezer"],
        "args": ["-memory", str(SIZE_MIB)],
        "ports": [{"containerPort": freezer.PORT}],
        "readinessProbe": {"tcpSocket": {"port": freezer.PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "100m"}},
    }
    return {"spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}


def _workload(name: str) -> dict[str, Any]:
    kind = {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuWorkload"}
    return {**kind, "metadata": {"name": name}, "spec": {"template": _template()}}


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:], __doc__ or "", measure))
