"""The containerd of a node: which one it is, what it makes of a configuration, and starting it anew.

Found by its socket, for that is what the kubelet talks to: the kernel says which process listens there, and the
process's command line says which file it has read. A distribution is the little that differs between them; the first
whose socket answers is the node's.

Sources: unix(7) (SO_PEERCRED: who called listen), proc(5), containerd(8), systemctl(1).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kybernate.errors import DeadlineError, ExternalError, NotFoundError
from kybernate_installer import configuration

_DUMP_SECONDS, _CTR_SECONDS, _END_SECONDS, _SYSTEMD_SECONDS = 30.0, 20.0, 60.0, 120.0
BACK_SECONDS = 90.0
_SYSTEMD = "/run/systemd/system"
"""There where systemd is the init. Source: sd_booted(3)."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NoContainerdError(NotFoundError):
    """No containerd listens at {sockets}. Is this the node's own mount namespace, and is its runtime containerd?"""


class ForeignPidError(NotFoundError):
    """{socket}: the process that listens there is not to be seen from here. The pod needs hostPID: true."""


class RefusedConfigurationError(ExternalError):
    """containerd does not take the configuration {file}: {reason}"""


class NotBackError(DeadlineError):
    """containerd did not come back within {seconds:g} s after it was {how}. Who starts it on this node?"""


class BrokenError(ExternalError):
    """containerd came back without its CRI plugin: {reason}"""


@dataclass(frozen=True)
class Distribution:
    """Where a distribution has its containerd's socket, and which file to edit where that is not the one it reads.

    What regenerates its configuration (k3s, microk8s) has a template; such a one names it here.
    """

    name: str
    socket: str
    template: str = ""


DISTRIBUTIONS = (Distribution("containerd", "/run/containerd/containerd.sock"),)


@dataclass(frozen=True)
class Containerd:
    """A running containerd. `config` is the file to edit, `reads` what the process was started with."""

    distribution: Distribution
    pid: int
    started: int
    program: str
    config: Path
    path: str
    unit: str

    def next_runtime(self, dump: configuration.Table) -> Path:
        """The program of its default runtime, as it would find it. Raises NotFoundError."""
        name = configuration.next_runtime(dump)
        if found := shutil.which(name, path=f"{os.path.dirname(self.program)}:{self.path}"):
            return Path(found)
        raise NotFoundError(f"{name}, the program of containerd's default runtime, is not in its PATH {self.path}")

    def dump(self, file: Path) -> configuration.Table:
        """What containerd makes of this file. Raises RefusedConfigurationError."""
        try:
            done = _run([self.program, "--config", str(file), "config", "dump"], _DUMP_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RefusedConfigurationError(file=file, reason=error) from error
        if done.returncode:
            raise RefusedConfigurationError(file=file, reason=done.stderr.strip()[-1000:])
        return configuration.parse(done.stdout, f"the dump of {file}")

    def cri(self) -> str:
        """The state of the CRI plugin in `ctr`'s words; "" where there is no ctr to ask."""
        ctr = shutil.which("ctr", path=f"{os.path.dirname(self.program)}:{self.path}")
        if ctr is None:
            return ""
        try:
            done = _run([ctr, "--address", self.distribution.socket, "plugins", "list"], _CTR_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"unknown: {error}"
        rows = [line.split() for line in done.stdout.splitlines()]
        states = [row[-1] for row in rows if row[:2] == ["io.containerd.grpc.v1", "cri"]]
        return states[0] if states else f"missing: {done.stderr.strip()[-300:]}"

    def restart(self, seconds: float) -> Containerd:
        """End it, and wait for the next one to serve, at most `seconds`; containers run on.

        Raises NotBackError, BrokenError."""
        present = self._present()
        healthy = present.cri()
        if self.unit and os.path.isdir(_SYSTEMD):
            how = f"restarted by systemd ({self.unit})"
            self._restart_unit(how)
        else:
            how = "ended by SIGTERM"
            present._end()
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            with contextlib.suppress(NoContainerdError, OSError):
                back = find((self.distribution,))
                if (back.pid, back.started) != (present.pid, present.started):
                    state = back.cri()
                    if healthy == "ok" and state not in ("ok", ""):
                        raise BrokenError(reason=f"`ctr plugins list` says {state}")
                    return back
            time.sleep(0.1)
        raise NotBackError(seconds=seconds, how=how)

    def _present(self) -> Containerd:
        """Who serves now: another one already, where this one was started anew and came back broken."""
        with contextlib.suppress(NoContainerdError, OSError):
            return find((self.distribution,))
        return self

    def _restart_unit(self, how: str) -> None:
        try:
            done = _run(["systemctl", "restart", self.unit], _SYSTEMD_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotBackError(seconds=_SYSTEMD_SECONDS, how=f"{how}: {error}") from error
        if done.returncode:
            raise NotBackError(seconds=_SYSTEMD_SECONDS, how=f"{how}, which said: {done.stderr.strip()}")

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.pid)
            try:
                if start_of(self.pid) != self.started:
                    return
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                poller = select.poll()
                poller.register(pidfd, select.POLLIN)
                if not poller.poll(_END_SECONDS * 1000):
                    raise NotBackError(seconds=_END_SECONDS, how="sent SIGTERM, which it does not follow")
            finally:
                os.close(pidfd)


def find(distributions: Sequence[Distribution] = DISTRIBUTIONS, patience: float = 0.0) -> Containerd:
    """The containerd of this node. One that starts anew just now, because an installer was killed after it had asked
    for that, is waited for, `patience` seconds. Raises NoContainerdError, ForeignPidError, OSError.
    """
    until = time.monotonic() + patience
    while True:
        for distribution in distributions:
            if pid := _listener(distribution.socket):
                return _inspect(distribution, pid)
        if time.monotonic() >= until:
            break
        time.sleep(0.1)
    raise NoContainerdError(sockets=", ".join(distribution.socket for distribution in distributions))


def _listener(path: str) -> int:
    """The pid of the process that listens at a unix socket; 0 where none does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
        except OSError:
            return 0
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if not pid:
        raise ForeignPidError(socket=path)
    return int(pid)


def _inspect(distribution: Distribution, pid: int) -> Containerd:
    proc = Path("/proc", str(pid))
    started = start_of(pid)
    program = os.readlink(proc / "exe").removesuffix(" (deleted)")
    words = (proc / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    environment = (proc / "environ").read_bytes().decode(errors="surrogateescape").split("\0")
    path = next((word[5:] for word in environment if word.startswith("PATH=")), _PATH)
    config = distribution.template or config_of(words)
    config = os.path.join(os.readlink(proc / "cwd"), config)
    groups = (proc / "cgroup").read_text().split()
    unit = next((group.rpartition("/")[2] for group in groups if group.endswith(".service")), "")
    return Containerd(distribution, pid, started, program, Path(os.path.realpath(config)), path, unit)


def config_of(words: Sequence[str]) -> str:
    """The configuration file in a command line of containerd's. Pure."""
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in ("--config", "-config", "-c"):
            return value if equals else words[number + 1]
    return "/etc/containerd/config.toml"


def start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; with the pid it is one process and no other."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def _run(argv: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": _PATH, "HOME": "/root"}
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False, env=environment
    )
