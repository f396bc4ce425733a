"""The agent as a process of a cluster's node, and instances as the controller would make them.

A workload here is one pod with its GpuInstance, made by `instance`; `annotated` is a pod that no GpuWorkload owns. The
application is the counting server: its count and its birth tell a resume from a beginning.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent_bed import APPS, THIS_RUN, Answer, ask, eventually
from cluster_bed import CLASS, ClusterBed, pod

from kybernate.api import crd
from kybernate.lab.process import ProgramError, argv_of, pids

PYTHON = sys.executable
MORTAL = Path(__file__).parents[1] / "faults" / "mortal_agent.py"
LIMIT = 60.0
"""Seconds; what is waited for takes at most five."""


class NodeAgent:
    """`python -m kybernate_agent` on the first node; its state is the node's, on its disk."""

    def __init__(self, bed: ClusterBed, **cluster: object) -> None:
        self.bed = bed
        self.folder = bed.cluster.folder / "agent"
        self.folder.mkdir(exist_ok=True)
        self.config, self.log = self.folder / "agent.yaml", self.folder / "agent.log"
        settings = {"node_name": bed.node.name, "kubeconfig": str(bed.cluster.kubeconfig), **cluster}
        self.config.write_text(json.dumps({"version": 1, "prove_seconds": 0.5, "cluster": settings}))
        self._process: subprocess.Popen[bytes] | None = None

    def program(self) -> list[str | Path]:
        return ["-m", "kybernate_agent"]

    def environment(self) -> dict[str, str]:
        return {}

    def start(self, wait: bool = True) -> None:
        with self.log.open("ab") as log:
            self._process = self.bed.node.popen(
                [PYTHON, *self.program(), "--config", self.config],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=self.environment(),
            )  # fmt: skip
        if wait:
            eventually(lambda: self.said("/readyz") == "ok\n", 30, f"the agent is ready: {self.tail()}")

    def said(self, path: str) -> str:
        """What the health server says."""
        try:
            ask = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:9815{path}').read().decode(), end='')"
            return self.bed.node.run([PYTHON, "-c", ask])
        except ProgramError:
            assert self._process is not None
            assert self._process.poll() is None, f"the agent ended: {self.tail()}"
            return ""

    def _pids(self) -> list[int]:
        return [pid for pid in pids() if str(self.config) in argv_of(pid) and argv_of(pid)[0] != "nsenter"]

    def kill(self, number: int = signal.SIGKILL) -> None:
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if self._process is not None:
            self._process.wait(30)

    def stop(self) -> None:
        self.kill(signal.SIGTERM)

    def tail(self, characters: int = 6000) -> str:
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    def tell(self) -> str:
        """For whoever wants to know why a test failed."""
        return self.tail(20000)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Killed for the block."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Stopped for the block. nsenter stops by itself when it does, and does not go on by itself."""
        agent = self._pids()
        nsenter = [pid for pid in pids() if str(self.config) in argv_of(pid) and pid not in agent]
        for pid in agent:
            os.kill(pid, signal.SIGSTOP)
        eventually(lambda: all(is_stopped(pid) for pid in agent + nsenter), LIMIT, "the agent stands still")
        try:
            yield
        finally:
            for pid in agent + nsenter:
                os.kill(pid, signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


class MortalAgent(NodeAgent):
    """It dies where `dies_at` says, once; tests/faults/mortal_agent.py."""

    def __init__(self, bed: ClusterBed) -> None:
        super().__init__(bed)
        self.order_to_die = self.folder / "dies-at"

    def dies_at(self, when: str, verb: str, step: str) -> None:
        self.order_to_die.write_text(f"{when} {verb} {step}")

    def program(self) -> list[str | Path]:
        return [MORTAL]

    def environment(self) -> dict[str, str]:
        return {"AT": str(self.order_to_die)}

    def died(self) -> None:
        assert self._process is not None
        assert self._process.wait(2 * LIMIT) in (-signal.SIGKILL, 128 + signal.SIGKILL), self.tail()


def install_crds(bed: ClusterBed) -> None:
    bed.kubectl("apply", "--server-side", "-f", crd.FOLDER)
    for kind in crd.KINDS:
        bed.wait(f"crd/{kind.plural}.kybernate.io", "Established")


@contextlib.contextmanager
def agent_on(bed: ClusterBed, **cluster: object) -> Iterator[NodeAgent]:
    """An agent that runs on the node, with the CRDs there."""
    install_crds(bed)
    agent = NodeAgent(bed, **cluster)
    try:
        agent.start()
        yield agent
    finally:
        agent.stop()


class Instance:
    """A pod that is an instance, by the name of both."""

    def __init__(self, bed: ClusterBed, name: str) -> None:
        self.bed, self.name = bed, name

    @property
    def object(self) -> dict[str, Any]:
        return self.bed.get("gi", self.name)

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.object.get("status") or {})

    @property
    def pod(self) -> dict[str, Any]:
        return self.bed.get("pod", self.name)

    @property
    def ip(self) -> str:
        return self.bed.pod_ip(self.name)

    def ask(self, seconds: float = 30) -> Answer:
        return ask(self.ip, seconds=seconds)

    def wait(self, state: str, seconds: float = LIMIT) -> dict[str, Any]:
        """Its status once it is in that state."""
        seen: dict[str, Any] = {}

        def look() -> bool:
            seen.clear()
            seen.update(self.status)
            return bool(seen.get("state") == state)

        try:
            eventually(look, seconds, f"{self.name} is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {json.dumps(seen, indent=1)}") from None
        return dict(seen)

    def serving(self) -> Answer:
        """What it answers once it does."""
        self.bed.wait(f"pod/{self.name}")
        return eventually(self.ask, LIMIT, f"{self.name} serves")

    def order(self, verb: str, key: str = "") -> dict[str, Any]:
        """Carried out, or refused: what the status says of it."""
        key = key or f"{verb}-{time.monotonic_ns()}"
        self.bed.kubectl("annotate", "gi", self.name, f"kybernate.io/order={verb} {key}", "--overwrite")
        return eventually(lambda: self._answered(key), LIMIT, f"the order {verb} of {self.name} is answered")

    def _answered(self, key: str) -> dict[str, Any] | None:
        order = self.status.get("order") or {}
        return dict(order) if order.get("id") == key else None

    def patch(self, spec: dict[str, Any]) -> None:
        self.bed.kubectl("patch", "gi", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def events(self) -> list[str]:
        """Reasons of the Events about it."""
        about = f"--field-selector=involvedObject.name={self.name},involvedObject.kind=GpuInstance"
        return [event["reason"] for event in self.bed.items("events", about)]

    def restarts(self) -> int:
        return int(self.pod["status"]["containerStatuses"][0]["restartCount"])

    def ready(self) -> bool:
        conditions = self.pod["status"]["conditions"]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def app_pod(name: str, **more: Any) -> dict[str, Any]:
    """The counting server in a pod of the runtime."""
    container = {
        "command": ["/usr/bin/python3", "-u", "/apps/counting.py"],
        "env": [{"name": "TEST_RUN", "value": THIS_RUN}, {"name": "MARK", "value": name}],
        "volumeMounts": [{"name": "apps", "mountPath": "/apps", "readOnly": True}, *more.pop("mounts", [])],
        **more.pop("container", {}),
    }
    volumes = [{"name": "apps", "hostPath": {"path": str(APPS)}}, *more.pop("volumes", [])]
    made = pod(name, container=container, volumes=volumes, runtimeClassName=CLASS, **more)
    made["metadata"]["annotations"] = {"kybernate.io/containers": "app"}
    return made


def make_instance(
    bed: ClusterBed, name: str, *, pod_spec: dict[str, Any] | None = None, epoch: int = 1, **policy: Any
) -> Instance:
    """Pod first, then the GpuInstance with its uid, as the controller does."""
    made = app_pod(name, **(pod_spec or {}))
    made["metadata"]["labels"] |= {"kybernate.io/instance": name, "kybernate.io/workload": name.rpartition("-")[0]}
    made["metadata"]["ownerReferences"] = []
    bed.apply(made)
    name_pod(bed, name, epoch, **policy)
    return Instance(bed, name)


def name_pod(bed: ClusterBed, name: str, epoch: int, **policy: Any) -> None:
    """Say that the pod of that name is the instance now."""
    spec = {
        "workload": name.rpartition("-")[0] or name,
        "nodeName": bed.node.name,
        "pod": name,
        POD_UID: bed.get("pod", name)["metadata"]["uid"],
        "epoch": epoch,
        "policy": {"container": "app", "ports": [8080], **policy},
    }
    meta = {"name": name, "namespace": "default", "finalizers": ["kybernate.io/state"]}
    body = {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuInstance", "metadata": meta, "spec": spec}
    bed.kubectl(
        "apply", "--server-side", "--force-conflicts", "--field-manager=kybernate-controller", "-f", "-",
        stdin=json.dumps(body),
    )  # fmt: skip


@contextlib.contextmanager
def instance(bed: ClusterBed, name: str, **more: Any) -> Iterator[Instance]:
    """One that serves; it is gone at the end."""
    made = make_instance(bed, name, **more)
    try:
        made.serving()
        yield made
    finally:
        remove(bed, name)


def evict(bed: ClusterBed, name: str, wait: bool = True) -> None:
    """As `kubectl drain` does; returns when the pod is gone."""
    meta = {"name": name, "namespace": "default"}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
    path = f"/api/v1/namespaces/default/pods/{name}/eviction"
    bed.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))
    if wait:
        bed.wait(f"pod/{name}", "delete")


def next_pod(bed: ClusterBed, name: str, epoch: int, *, pod_spec: dict[str, Any] | None = None, **policy: Any) -> None:
    """The pod anew, under its name, as the instance."""
    make_instance(bed, name, pod_spec=pod_spec, epoch=epoch, **policy)


def remove(bed: ClusterBed, name: str) -> None:
    bed.delete(f"gi/{name}", f"pod/{name}")


def processes_of(name: str) -> list[int]:
    """Host pids of the application of that name, in this run of the tests."""
    found = []
    for pid in pids():
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"MARK={name}".encode() in environment and f"TEST_RUN={THIS_RUN}".encode() in environment:
                found.append(pid)
    return found


POD_UID = "podUID"
__all__ = ["Instance", "MortalAgent", "NodeAgent", "agent_on", "eventually", "instance", "make_instance", "remove"]
