"""A real agent on the shared containerd, and workloads whose state shows: what tests of the whole path use.

The agent is `python -m kybernate_agent`, a process of its own, so it can be killed. The application is a small HTTP
server that counts its requests: the count and its time of birth tell a resume from a cold start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from node_bed import PYTHON_IMAGE, NodeBed

from kybernate.agentapi._pb import agent_pb2 as pb
from kybernate.agentapi.client import AgentClient
from kybernate.errors import KybernateError

HERE = Path(__file__).parent
THIS_RUN = uuid.uuid4().hex  # several runs of the tests may share a machine
APPS = HERE / "apps"
T = TypeVar("T")


def eventually(look: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first true answer of `look`, asked again and again for at most `seconds`."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(KybernateError, OSError):
            if found := look():
                return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


@dataclass
class Answer:
    """What the counting server says of itself."""

    count: int
    born: str


class Agent:
    """One agent process and the client that speaks to it. `state` survives restarts, as on a node."""

    def __init__(self, bed: NodeBed, state: Path, settings: str = "") -> None:
        self.bed, self.state = bed, state
        self.config = state / "agent.yaml"
        self.log = state / "agent.log"
        state.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            f"version: 1\nrun_dir: {bed.run}\nstate_dir: {state}/lib\ncontainerd_socket: {bed.containerd.socket}\n"
            f"prefix: {bed.prefix}\n{settings}"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, program: Sequence[str] = ("-m", "kybernate_agent"), wait: bool = True, **env: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "--config", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **env},
            )  # fmt: skip
        if wait:
            eventually(self._answers, 30, f"the agent answers; its log: {self.log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended: {self.log.read_text()[-3000:]}"
        with self.client() as client:
            client.instances()
        return True

    def client(self) -> AgentClient:
        return AgentClient(self.bed.run / "agent.sock")

    def kill(self) -> None:
        """As the kernel would: no chance to put anything in order."""
        if self.process:
            self.process.kill()
            self.process.wait(20)

    def died(self) -> int:
        assert self.process is not None
        return self.process.wait(60)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)

    def apply(self, name: str, **more: Any) -> None:
        with self.client() as client:
            client.apply(workload(name, **more), f"{name}.yaml")

    def get(self, name: str) -> pb.Instance:
        with self.client() as client:
            return client.get(name)

    def order(self, verb: str, name: str) -> pb.Instance:
        with self.client() as client:
            return client.order(verb, name, wait=True)

    def wait(self, name: str, state: str, seconds: float = 60) -> pb.Instance:
        def look() -> pb.Instance | None:
            found = self.get(name)
            return found if found.state == state else None

        try:
            return eventually(look, seconds, f"{name} is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is:\n{self.get(name)}\nlog:\n{self.log.read_text()[-4000:]}") from None

    def ready(self, name: str) -> pb.Instance:
        """Running, and the application answers."""
        found = self.wait(name, "Running")
        eventually(lambda: self.ask(name), 30, f"{name} answers")
        return self.get(name) if not found.ip else found

    def ask(self, name: str, port: int = 8080, seconds: float = 30) -> Answer:
        """One request over a new connection."""
        return ask(self.get(name).ip, port, seconds)

    def delete_all(self) -> None:
        with self.client() as client:
            for instance in client.instances():
                client.delete(instance.workload, wait=True)


def ask(ip: str, port: int = 8080, seconds: float = 30) -> Answer:
    doing = "no connection"
    try:
        with socket.create_connection((ip, port), timeout=seconds) as connection:
            doing = "connected, but no answer"
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            said = b""
            while data := connection.recv(65536):
                said += data
    except TimeoutError:
        raise TimeoutError(f"{ip}:{port}: {doing} within {seconds:g} s") from None
    count, born = said.rpartition(b"\r\n\r\n")[2].split()
    return Answer(int(count), born.decode())


def workload(
    name: str,
    app: str = "counting.py",
    *,
    image: str = PYTHON_IMAGE,
    command: Sequence[str] | None = None,
    ports: Sequence[int] = (8080,),
    idle: dict[str, object] | None = None,
    wake: dict[str, object] | None = None,
    env: dict[str, str] | None = None,
    apps: Path = APPS,
    container: dict[str, object] | None = None,
) -> str:
    """A GpuWorkload manifest that runs `app` of tests/apps. Without `idle` it sleeps only when ordered."""
    spec = {
        "name": "app",
        "image": image,
        "command": list(command or ["/usr/bin/python3", "-u", f"/apps/{app}"]),
        "ports": [{"containerPort": port} for port in ports],
        "env": [{"name": k, "value": v} for k, v in {"TEST_RUN": THIS_RUN, **(env or {})}.items()],
        "volumeMounts": [{"name": "apps", "mountPath": "/apps", "readOnly": True}],
        **(container or {}),
    }
    template = {"spec": {"containers": [spec], "volumes": [{"name": "apps", "hostPath": {"path": str(apps)}}]}}
    return yaml.safe_dump(
        {
            "apiVersion": "kybernate.io/v1alpha1",
            "kind": "GpuWorkload",
            "metadata": {"name": name},
            "spec": {"template": template, "idle": idle or {}, **({"wake": wake} if wake else {})},
        }
    )


@contextlib.contextmanager
def agent_on(bed: NodeBed, folder: Path, settings: str = "") -> Iterator[Agent]:
    """An agent that is started, and at the end has no instance left and leaves no folder."""
    agent = Agent(bed, folder, settings)
    try:
        agent.start()
        yield agent
    finally:
        if agent.process and agent.process.poll() is not None:
            agent.start()
        agent.delete_all()
        agent.stop()
        shutil.rmtree(agent.state, ignore_errors=True)


def processes_with(word: str) -> list[int]:
    """Pids whose environment has `word`: every process of a workload of this run that was given it, wherever it is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes()
                if word.encode() in environment and THIS_RUN.encode() in environment:
                    found.append(int(entry.name))
    return found
