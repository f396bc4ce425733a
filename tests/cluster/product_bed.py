"""The whole product on a node: controller and agent as processes, each with the rights that it is deployed with.

product.agent        on the node; its token is bound to that node, as the one that a kubelet fetches
product.controller   on the control plane's machine
product.workload     a GpuWorkload of the counting server: its count and its birth tell a resume from a beginning
remains(bed)         all that workloads could leave on node and cluster, to compare with what was there before
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from agent_bed import APPS, THIS_RUN, Answer, ask, eventually
from agent_in_cluster import PYTHON, Instance, NodeAgent, install_crds, processes_of
from cluster_bed import CLASS, PYTHON_IMAGE, ClusterBed

from kybernate.lab.cluster.api import ApiError
from kybernate.lab.process import ProgramError, argv_of, pids

LIMIT = 90.0
"""Seconds; what is waited for takes a few."""
GONE_SECONDS = 20.0
NAMESPACE = "kybernate-system"
DEPLOY = Path(__file__).parents[2] / "deploy" / "base"
KINDS = "/apis/kybernate.io/v1alpha1/namespaces/default"
SOON = {"suspendAfter": "1s", "parkAfter": "500ms"}


def token_of(bed: ClusterBed, account: str, *words: str) -> Path:
    """A kubeconfig with a token of a service account."""
    token = bed.kubectl("create", "token", account, "-n", NAMESPACE, "--duration=4h", *words).strip()
    cluster = {"server": bed.cluster.plan.server, "certificate-authority": str(bed.cluster.authority.certificate)}
    body = {
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": cluster}], "users": [{"name": "it", "user": {"token": token}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }  # fmt: skip
    path = bed.cluster.folder / f"{account}-{time.monotonic_ns()}.conf"
    path.touch(0o600)
    path.write_text(json.dumps(body))
    return path


class HesitantAgent(NodeAgent):
    """An agent that can be told to stop in the midst of a verb; see product_agent."""

    def __init__(self, bed: ClusterBed, **cluster: object) -> None:
        words = ["--bound-object-kind=Node", f"--bound-object-name={bed.node.name}"]
        super().__init__(bed, kubeconfig=str(token_of(bed, "kybernate-agent", *words)), **cluster)
        self.folder = bed.cluster.folder / f"agent-{bed.node.name}"
        self.folder.mkdir(exist_ok=True)
        self.config, self.log = self.config.rename(self.folder / "agent.yaml"), self.folder / "agent.log"
        self.order_to_stop = self.folder / "stops-at"

    def program(self) -> list[str | Path]:
        return [Path(__file__).with_name("product_agent.py")]

    def environment(self) -> dict[str, str]:
        return {"AT": str(self.order_to_stop)}

    def stops_at(self, when: str, verb: str, step: str) -> None:
        self.order_to_stop.write_text(f"{when} {verb} {step}")

    def await_stopped(self) -> None:
        eventually(self._stopped, LIMIT, f"the agent stopped where it was told to: {self.tail(2000)}")

    def _stopped(self) -> bool:
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in self._pids()]
        return not self.order_to_stop.exists() and "T" in stats

    def go_on(self) -> None:
        self.order_to_stop.unlink(missing_ok=True)
        self.kill_all(signal.SIGCONT)
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)  # nsenter(1) stops itself when its child does

    def kill_all(self, number: int) -> None:
        """Send it a signal and wait for nothing."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        self.go_on()
        super().stop()


class ControllerProcess:
    """`python -m kybernate_controller` on the control plane's machine; a new one leads soon after a killed one."""

    def __init__(self, bed: ClusterBed) -> None:
        self.bed, self.log = bed, bed.cluster.folder / "controller.log"
        self.config = token_of(bed, "kybernate-controller")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv: list[str | Path] = [PYTHON, "-m", "kybernate_controller", "--kubeconfig", self.config]
        argv += ["--lease-seconds=6", "--renew-seconds=4", "--retry-seconds=0.5"]
        with self.log.open("ab") as log:
            self._process = self.bed.cluster.control_plane.popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        eventually(self._ready, LIMIT, f"the controller is ready: {self.tail()}")

    def _ready(self) -> bool:
        ask = "import urllib.request as u; u.urlopen('http://127.0.0.1:8081/readyz').read()"
        try:
            self.bed.cluster.control_plane.run([PYTHON, "-c", ask])
        except ProgramError:
            assert self._process is not None
            assert self._process.poll() is None, f"the controller ended: {self.tail()}"
            return False
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        for pid in pids():
            argv = argv_of(pid)
            if str(self.config) in argv and argv[0] != "nsenter":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if self._process is not None:
            self._process.wait(30)

    def tail(self, characters: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""


class One(Instance):
    """An instance of a GpuWorkload; asked by requests, which cost less than kubectl."""

    slept = -1

    def mark(self) -> None:
        """Before it is called: what is known of it now is not what `parked` waits for."""
        self.slept = int(self.status.get("epoch", 0))

    def ask(self, seconds: float = 60) -> Answer:
        self.mark()
        return ask(self.ip, seconds=seconds)

    def parked(self) -> dict[str, Any]:
        """Its status once it is parked, anew where it was called meanwhile."""

        def look() -> dict[str, Any] | None:
            status = self.status
            return status if status.get("state") == "Parked" and status.get("epoch", 0) > self.slept else None

        return eventually(look, LIMIT, f"{self.name} is parked, of an epoch after {self.slept}")

    @property
    def object(self) -> dict[str, Any]:
        return dict(self.bed.cluster.api.get(f"{KINDS}/gpuinstances/{self.name}"))

    @property
    def pod(self) -> dict[str, Any]:
        return dict(self.bed.cluster.api.get(f"/api/v1/namespaces/default/pods/{self.name}"))

    @property
    def ip(self) -> str:
        return str(self.pod["status"]["podIP"])

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    def container(self) -> str:
        """Which container the kubelet speaks of: another one after a restart."""
        return str(self.pod["status"]["containerStatuses"][0].get("containerID", ""))

    def restarted(self, before: str) -> None:
        """Once the kubelet says that another container than `before` runs: from then on its address is true too."""

        def look() -> bool:
            status = self.pod["status"]["containerStatuses"][0]
            return "running" in status["state"] and status["containerID"] != before

        eventually(look, LIMIT, f"{self.name} runs in another container than {before}")


class Workload:
    """A GpuWorkload that was applied."""

    def __init__(self, product: Product, name: str) -> None:
        self.product, self.bed, self.name = product, product.bed, name

    @property
    def object(self) -> dict[str, Any]:
        return dict(self.bed.cluster.api.get(f"{KINDS}/gpuworkloads/{self.name}"))

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.object.get("status") or {})

    def __getitem__(self, ordinal: int) -> One:
        return One(self.bed, f"{self.name}-{ordinal}")

    def names(self) -> list[str]:
        """Of its instances that are to stay."""
        found = self.bed.cluster.api.get(f"{KINDS}/gpuinstances")["items"]
        mine = [one for one in found if one["spec"].get("workload") == self.name]
        return sorted(one["metadata"]["name"] for one in mine if "deletionTimestamp" not in one["metadata"])

    def ready(self, seconds: float = LIMIT) -> Workload:
        """Once it is, with a status of its present spec."""
        seen: dict[str, Any] = {}

        def look() -> bool:
            seen.update(self.object)
            status = seen.get("status") or {}
            found = {c["type"]: c["status"] for c in status.get("conditions", [])}
            current = status.get("observedGeneration") == seen["metadata"]["generation"]
            return current and found.get("Ready") == "True" and found.get("Progressing") != "True"

        try:
            eventually(look, seconds, f"{self.name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(seen.get('status'), indent=1)}") from None
        return self

    def scale(self, replicas: int) -> None:
        self.bed.kubectl("scale", "gw", self.name, f"--replicas={replicas}")

    def patch(self, spec: dict[str, Any]) -> None:
        path = f"{KINDS}/gpuworkloads/{self.name}"
        self.bed.cluster.api.request("PATCH", path, {"spec": spec}, "application/merge-patch+json")

    def delete(self, wait: bool = True) -> None:
        with contextlib.suppress(ApiError):
            self.bed.cluster.api.request("DELETE", f"{KINDS}/gpuworkloads/{self.name}")
        if wait:
            self.await_gone(LIMIT)

    def await_gone(self, seconds: float = GONE_SECONDS) -> None:
        """No object of it is there any more."""
        eventually(lambda: not self.objects(), seconds, f"{self.name} is gone; still there: {self.objects()}")

    def objects(self) -> list[str]:
        api = self.bed.cluster.api
        there = [(kind, api.get(f"{KINDS}/{kind}")["items"]) for kind in ("gpuworkloads", "gpuinstances")]
        there.append(("pods", api.get("/api/v1/namespaces/default/pods")["items"]))
        return [
            f"{kind}/{item['metadata']['name']} {item['metadata'].get('finalizers', '')}"
            for kind, items in there
            for item in items
            if item["metadata"]["name"] == self.name
            or (item["metadata"].get("labels") or {}).get("kybernate.io/workload") == self.name
            or item["spec"].get("workload") == self.name
        ]


def manifest(
    name: str,
    *,
    replicas: int = 1,
    idle: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
    pod: dict[str, Any] | None = None,
    container: dict[str, Any] | None = None,
    mark: str = "",
) -> dict[str, Any]:
    """A GpuWorkload of the counting server. Its processes are found by `processes_of(mark or name)`."""
    pod, container = dict(pod or {}), dict(container or {})
    one = {
        "name": "app",
        "image": PYTHON_IMAGE,
        "command": ["/usr/bin/python3", "-u", "/apps/counting.py"],
        "ports": [{"containerPort": 8080}],
        **container,
        "env": [
            {"name": "TEST_RUN", "value": THIS_RUN},
            {"name": "MARK", "value": mark or name},
            *container.get("env", []),
        ],
        "volumeMounts": [
            {"name": "apps", "mountPath": "/apps", "readOnly": True},
            *container.get("volumeMounts", []),
        ],
    }
    whole = {
        "terminationGracePeriodSeconds": 10,
        **pod,
        "containers": [one, *pod.get("containers", [])],
        "volumes": [{"name": "apps", "hostPath": {"path": str(APPS)}}, *pod.get("volumes", [])],
    }
    template = {"metadata": {"labels": {"app": name}}, "spec": whole}
    body = {"replicas": replicas, "template": template, "idle": idle or {}, **(spec or {})}
    return {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuWorkload", "metadata": {"name": name}, "spec": body}


class Product:
    """Controller and agent at work on a cluster."""

    def __init__(self, bed: ClusterBed) -> None:
        self.bed = bed
        install_crds(bed)
        bed.apply(*deployed_but_programs(bed))
        self.agent = HesitantAgent(bed)
        self.controller = ControllerProcess(bed)

    @contextlib.contextmanager
    def workload(self, name: str, *, ready: bool = True, **more: Any) -> Iterator[Workload]:
        """One that serves; it is gone at the end."""
        self.bed.apply(manifest(name, **more))
        made = Workload(self, name)
        try:
            if ready:
                made.ready()
            yield made
        finally:
            self.agent.go_on()
            made.delete()

    def tell(self) -> str:
        """For whoever wants to know why a test failed."""
        return f"== agent\n{self.agent.tell()}\n== controller\n{self.controller.tail()}"


def deployed_but_programs(bed: ClusterBed) -> list[dict[str, Any]]:
    """What `kubectl apply -k` brings, without CRDs, DaemonSet and Deployment."""
    found = list(yaml.safe_load_all(bed.kubectl("kustomize", DEPLOY)))
    programs = ("CustomResourceDefinition", "DaemonSet", "Deployment")
    return [one for one in found if one["kind"] not in programs]


@contextlib.contextmanager
def open_product(bed: ClusterBed) -> Iterator[Product]:
    """Both run for the block; what a person would have applied with them is gone afterwards."""
    product = Product(bed)
    try:
        product.agent.start()
        product.controller.start()
        yield product
    finally:
        product.controller.kill(signal.SIGTERM)
        product.agent.stop()
        kept = [one for one in deployed_but_programs(bed) if one["kind"] not in ("RuntimeClass", "Namespace")]
        bed.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=yaml.safe_dump_all(kept))


def await_collector(bed: ClusterBed) -> None:
    """Until Kubernetes' garbage collector knows our kinds: it looks for new ones every half a minute."""
    bed.apply(manifest("collected", replicas=0))
    uid = bed.get("gw", "collected")["metadata"]["uid"]
    owner = {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuWorkload", "name": "collected", "uid": uid}
    bed.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "collected", "ownerReferences": [owner]}})
    bed.delete("gw/collected")
    bed.wait("configmap/collected", "delete", seconds=LIMIT)


def service(name: str) -> dict[str, Any]:
    """A Service over the instances of a workload, as examples/ has it."""
    spec = {"selector": {"kybernate.io/workload": name}, "ports": [{"port": 80, "targetPort": 8080}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


__all__ = ["CLASS", "PYTHON_IMAGE", "Answer", "ask", "eventually", "processes_of"]
