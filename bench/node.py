"""Our side: the installed shim, a private containerd, a running agent, and freezers as GpuWorkloads.

Nothing is shortened for the benchmark: the workload goes through the agent's API, containerd's CRI and the launcher,
the request comes over the bridge, and the agent notices it as it would any other.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kybernate_shim.install import install

from bench import freezer
from bench.harness import lab, note
from kybernate.agentapi._pb import agent_pb2 as pb
from kybernate.agentapi.client import AgentClient, NoAgentError
from kybernate.errors import DeadlineError, ExternalError, KybernateError
from kybernate.lab import Containerd
from kybernate.lab.process import ProgramMissingError

_RUN = Path("/run/kybernate")
_START_SECONDS = 120.0
_STEP_SECONDS = 120.0


class AgentEndedError(ExternalError):
    """The agent ended while it started. Its log ends: {log}"""


class StateDeadlineError(DeadlineError):
    """{name} is {state}, and was not {wanted} within {seconds} s. Its last events: {said}"""


@dataclass
class Sleeper:
    """One instance: a freezer under the agent."""

    client: AgentClient
    name: str
    address: str
    text: str

    def park(self) -> float:
        """Milliseconds that `park` took, from the order to its answer: dumped, hashed, on disk, committed."""
        return self._order("park")

    def suspend(self) -> float:
        """Milliseconds of `suspend`."""
        return self._order("suspend")

    def wake(self) -> float:
        """Milliseconds from connect to full reply of a sleeper. Raises ReplyError where it lost its state."""
        spent = freezer.woken(self.address, self.text)
        await_state(self.client, self.name, "Running")
        return spent

    def _order(self, verb: str) -> float:
        began = time.perf_counter()
        self.client.order(verb, self.name, wait=True, deadline_seconds=_STEP_SECONDS)
        return (time.perf_counter() - began) * 1000


@dataclass
class Node:
    containerd: Containerd
    launcher: Path
    agent: subprocess.Popen[bytes]
    client: AgentClient

    @contextlib.contextmanager
    def sleeper(self, name: str, size_mib: int) -> Iterator[Sleeper]:
        """A freezer of this size, running."""
        self.client.apply(json.dumps(_manifest(name, size_mib)), f"{name}.yaml")
        try:
            instance = await_state(self.client, f"{name}-0", "Running")
            found = Sleeper(self.client, instance.name, instance.ip, f"{name}-{time.time_ns()}")
            freezer.remember(found.address, found.text)
            yield found
        finally:
            with contextlib.suppress(NoAgentError):  # it ended; whoever ends the lab ends its containers
                self.client.delete(name, wait=True, deadline_seconds=_STEP_SECONDS)

    def bundle(self, name: str) -> Path:
        """The OCI bundle of an instance's container."""
        container = self.client.get(name).container_id
        return self.containerd.state / "io.containerd.runtime.v2.task" / "k8s.io" / container

    def keeper(self, name: str) -> int:
        """The pid of the keeper of an instance's container."""
        record = _RUN / "keepers" / self.client.get(name).container_id / "state.json"
        return int(json.loads(record.read_bytes())["keeper_pid"])


@contextlib.contextmanager
def node(root: Path) -> Iterator[Node]:
    """Everything of ours in `root`, running; gone afterwards. What the agent logged is shown when something failed."""
    runc = shutil.which("runc")
    if not runc:
        raise ProgramMissingError(program="runc")
    launcher = install(root / "prefix", _RUN, Path(runc), os.environ["PATH"], python="/usr/bin/python3")
    containerd = lab(launcher)
    log = root / "agent.log"
    try:
        containerd.start(images=[freezer.image()])
        with _agent(root, containerd, log) as agent, _client(agent, log) as client:
            yield Node(containerd, launcher, agent, client)
    except KybernateError:
        if log.exists():
            note(f"the agent's log ends:\n{log.read_text(errors='replace')[-3000:]}")
        raise
    finally:
        containerd.stop()


@contextlib.contextmanager
def _agent(root: Path, containerd: Containerd, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    config = root / "agent.yaml"
    settings = {
        "version": 1, "run_dir": str(_RUN), "state_dir": str(root / "agent"), "prefix": str(root / "prefix"),
        "containerd_socket": str(containerd.socket),
    }  # fmt: skip
    config.write_text(json.dumps(settings))
    argv = [sys.executable, "-m", "kybernate_agent", "--config", str(config)]
    with log.open("ab") as out:
        agent = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield agent
    finally:
        agent.terminate()
        try:
            agent.wait(10)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()


@contextlib.contextmanager
def _client(agent: subprocess.Popen[bytes], log: Path) -> Iterator[AgentClient]:
    """A client, as soon as the agent listens. Raises AgentEndedError, NoAgentError."""
    limit = time.monotonic() + _START_SECONDS
    while True:
        if agent.poll() is not None:
            raise AgentEndedError(log=log.read_text(errors="replace")[-2000:])
        try:
            client = AgentClient(_RUN / "agent.sock")
            break
        except NoAgentError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.05)
    with client:
        yield client


def await_state(client: AgentClient, name: str, wanted: str, seconds: float = _START_SECONDS) -> pb.Instance:
    """Poll until the instance is in this state, and return it. Raises StateDeadlineError."""
    limit = time.monotonic() + seconds
    while True:
        found = client.get(name)
        if found.state == wanted:
            return found
        if time.monotonic() > limit or found.state in ("Failed", "StateLost"):
            said = "; ".join(event.message for event in found.events[-3:])
            raise StateDeadlineError(name=name, wanted=wanted, seconds=seconds, state=found.state, said=said)
        time.sleep(0.02)


def _manifest(name: str, size_mib: int) -> dict[str, Any]:
    """A freezer as a GpuWorkload, which sleeps when it is told to: no times in `idle`.

    The CPU request gives its cgroup the weight of an ordinary container, as the others in the comparison have it.
    """
    container = {
        "name": "freezer",
        "image": freezer.image().name,
        "command": ["/freezer"],
        "args": ["-memory", str(size_mib)],
        "ports": [{"containerPort": freezer.PORT}],
        "resources": {"requests": {"cpu": "1"}},
    }
    return {
        "apiVersion": "kybernate.io/v1alpha1",
        "kind": "GpuWorkload",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
