"""A whole node of its own: a private containerd with the installed shim, and an agent, as a machine would have them.

Shim and agent are started as programs, never imported: what is shown is what a user runs. `down` ends them from the
top, so that nobody brings back what another has ended, and finds them by their folders: a node that was killed or
kept is taken away by the next.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kybernate.agentapi.client import AgentClient, NoAgentError
from kybernate.errors import DeadlineError, ExternalError, InvalidError, RefusedError
from kybernate.lab.containerd import Containerd
from kybernate.lab.images import Image
from kybernate.lab.process import argv_of, end, ended_by, pids, run
from kybernate.lab.remains import contained

AGENT_SECONDS = 30.0
_NAMES = re.compile(r"kyb(ernate-(cluster-)?demo|demo-|cluster-)[a-z0-9-]{0,32}")


class AgentFailedError(ExternalError):
    """The agent ended while it started. Its log, {log}, ends: {tail}"""


class AgentLateError(DeadlineError):
    """The agent did not answer within {seconds:g} s. Its log, {log}, ends: {tail}"""


class InUseError(RefusedError):
    """Another process on this machine uses {name} now. Wait until it has ended."""


class LabNameError(InvalidError):
    """{name!r} is no name of a lab, whose folders are removed. Take one like kybernate-demo-2 (a-z, 0-9, -)."""


def checked(name: str) -> str:
    """The name again: it is one that nothing but a lab bears, so what has it may be removed. Raises LabNameError."""
    if not _NAMES.fullmatch(name):
        raise LabNameError(name=name)
    return name


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold the node's name on this machine, for as long as the block lasts. Raises InUseError.

    An abstract unix socket: it belongs to the network namespace, as the bridge does, and ends with the process.
    """
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0{name}")
        except OSError as error:
            raise InUseError(name=name) from error
        yield


class LabNode:
    """A node named `name`: data below /var/lib/NAME, sockets and state below /run/NAME. Raises LabNameError."""

    def __init__(self, name: str) -> None:
        self.lib, self.run = Path("/var/lib", checked(name)), Path("/run", name)
        self.prefix = self.lib / "prefix"
        self.agent_run = self.run / "agent"
        self.socket = self.agent_run / "agent.sock"
        self.log = self.lib / "agent.log"
        self._config = self.lib / "agent.yaml"
        launcher = self.prefix / "bin" / "kybernate-runc"
        self.containerd = Containerd(self.lib / "containerd", name, state=self.run / "containerd", launcher=launcher)

    @property
    def exists(self) -> bool:
        """Whether a node of this name is there, running or left behind."""
        return self.lib.exists() or self.run.exists()

    def up(self, images: Sequence[Image]) -> None:
        """Start everything anew; returns when the agent answers. A failure leaves nothing."""
        self.down()
        try:
            for folder in (self.lib, self.run):
                folder.mkdir(mode=0o711, parents=True)
            module = [sys.executable, "-m", "kybernate_shim.install"]
            run([*module, "--prefix", self.prefix, "--run-dir", self.agent_run])
            self.containerd.start(images=images)
            self._start_agent()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Leave nothing: agent, containers, containerd, network, folders. May be repeated."""
        self._stop_agent()
        self.containerd.stop()
        for folder in (self.run, self.lib):
            shutil.rmtree(folder, ignore_errors=True)

    def client(self) -> AgentClient:
        return AgentClient(self.socket)

    def memory_bytes(self) -> int:
        """What the processes in containers hold of the machine's memory, shared pages by share (PSS)."""
        return sum(pss_bytes(pid) for pid in contained(self.containerd.root))

    def _start_agent(self) -> None:
        settings = {
            "version": 1,
            "run_dir": self.agent_run,
            "state_dir": self.lib / "agent",
            "containerd_socket": self.containerd.socket,
            "prefix": self.prefix,
        }
        self._config.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
        with self.log.open("ab") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "kybernate_agent", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        limit = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self.client().close()
                return
            except NoAgentError:
                pass
            if agent.poll() is not None:
                raise AgentFailedError(log=self.log, tail=self.log_tail())
            if time.monotonic() > limit:
                raise AgentLateError(log=self.log, tail=self.log_tail(), seconds=AGENT_SECONDS)
            time.sleep(0.02)

    def _stop_agent(self) -> None:
        """SIGTERM, and SIGKILL to what is left of it after a while."""
        for pid in self._agents():
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                    ended_by(pidfd, time.monotonic() + 5)
                finally:
                    os.close(pidfd)
        end(self._agents)

    def _agents(self) -> list[int]:
        return [pid for pid in pids() if str(self._config) in argv_of(pid) and "kybernate_agent" in argv_of(pid)]

    def log_tail(self, characters: int = 1500) -> str:
        """The end of the agent's log; empty where there is none."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-characters:]
        return ""


def pss_bytes(pid: int) -> int:
    """Source: proc_pid_smaps_rollup(5). 0 for a process that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0
