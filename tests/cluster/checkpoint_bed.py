"""Checkpoints and restore jobs on a real node: the controller as a process, and an application that keeps files too."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_in_cluster import LIMIT, PYTHON, NodeAgent, agent_on, eventually
from cluster_bed import ClusterBed

from kybernate.lab.process import run

DATA = {
    "mounts": [{"name": "data", "mountPath": "/data"}],
    "volumes": [{"name": "data", "emptyDir": {}}],
}
KEEPING = {"container": {"command": ["/usr/bin/python3", "-u", "/apps/keeping.py"]}, **DATA}
"""For `instance(..., pod_spec=KEEPING)`; it has no HTTP, so ask it by `kept`."""
STORE = "/var/lib/kybernate/store"


@contextlib.contextmanager
def controller_for(bed: ClusterBed, folder: Path) -> Iterator[Path]:
    """`python -m kybernate_controller`, alone; its log."""
    log = folder / "controller.log"
    words = ["--kubeconfig", str(bed.cluster.kubeconfig), "--no-election", "--listen", ""]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [PYTHON, "-m", "kybernate_controller", *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/"
        )
    try:
        yield log
        assert process.poll() is None, log.read_text()[-4000:]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@dataclass
class Bed:
    """A node with both programs."""

    cluster: ClusterBed
    agent: NodeAgent
    log: Path

    def tell(self) -> str:
        """For whoever wants to know why a test failed."""
        return f"== agent\n{self.agent.tell()}\n== controller\n{self.log.read_text()[-6000:]}"

    def checkpoint(self, name: str, **spec: Any) -> None:
        spec.setdefault("source", {"instance": name.removesuffix("-copy")})
        self._create("GpuCheckpoint", name, spec)

    def restore(self, name: str, checkpoint: str, pod: str) -> None:
        self._create("GpuRestoreJob", name, {"checkpoint": checkpoint, "podName": pod})

    def _create(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        meta = {"name": name, "namespace": "default"}
        self.cluster.apply({"apiVersion": "kybernate.io/v1alpha1", "kind": kind, "metadata": meta, "spec": spec})

    def phase(self, kind: str, name: str, *wanted: str, seconds: float = 2 * LIMIT) -> dict[str, Any]:
        """The status once its phase is one of these."""
        seen: dict[str, Any] = {}

        def look() -> bool:
            seen.clear()
            seen.update(self.cluster.get(kind, name).get("status") or {})
            return seen.get("phase") in wanted

        try:
            eventually(look, seconds, f"{kind} {name} is {' or '.join(wanted)}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {json.dumps(seen, indent=1)}") from None
        return dict(seen)

    def copied(self, name: str, **spec: Any) -> dict[str, Any]:
        self.checkpoint(name, **spec)
        status = self.phase("gck", name, "Ready", "Failed")
        assert status["phase"] == "Ready", status
        return status

    def restored(self, checkpoint: str, pod: str) -> dict[str, Any]:
        self.restore(f"to-{pod}", checkpoint, pod)
        status = self.phase("grj", f"to-{pod}", "Succeeded", "Failed")
        assert status["phase"] == "Succeeded", status
        return status

    def kybernate(self, *words: str) -> str:
        """What the CLI says. Raises ProgramError."""
        return run([PYTHON, "-m", "kybernate.cli", "--kubeconfig", self.cluster.cluster.kubeconfig, *words],
                   deadline_seconds=120)  # fmt: skip

    def kept(self, pod: str, seconds: float = 30) -> dict[str, Any]:
        """One question to the application that keeps files."""
        self.cluster.wait(f"pod/{pod}", "jsonpath={.status.podIP}")  # the kubelet is slower than the agent
        with socket.create_connection((self.cluster.pod_ip(pod), 8080), timeout=seconds) as peer:
            peer.sendall(b"count\n")
            with peer.makefile() as lines:
                found: dict[str, Any] = json.loads(lines.readline())
        return found

    def copies(self) -> list[str]:
        """What the node's store has of checkpoints, committed or not."""
        said = self.cluster.node.run(["ls", f"{STORE}/instances", f"{STORE}/staging"]).split()
        return [word for word in said if word.startswith("checkpoint-")]

    def gone(self, *pods: str) -> None:
        self.cluster.delete(*(f"{kind}/{pod}" for pod in pods for kind in ("gi", "pod")))

    def forget(self) -> None:
        """All jobs and checkpoints, and with them their bytes."""
        self.cluster.kubectl("delete", "grj,gck", "--all", "-n", "default", "--timeout=60s")


@contextlib.contextmanager
def open_bed(cluster: ClusterBed, folder: Path) -> Iterator[Bed]:
    with agent_on(cluster) as agent, controller_for(cluster, folder) as log:
        yield Bed(cluster, agent, log)
