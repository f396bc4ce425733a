"""One machine of a cluster: namespaces, a disk and services, seen from the host.

    FOLDER/init.json    what pid 1 is told; its path, in the command lines of pid 1 and of unshare(1), marks the machine
    FOLDER/pid          pid 1 as the host sees it
    FOLDER/log/         one file per service, `init` is pid 1's own
    FOLDER/disk/        what stays when the machine is taken away

Inside, the machine is as `init` says. Here it is started, entered, and ended by killing pid 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM, pidfd_send_signal
from typing import Any

from kybernate.errors import DeadlineError, ExternalError, NotFoundError
from kybernate.lab.cluster import init
from kybernate.lab.process import (
    ProgramError,
    ProgramMissingError,
    StuckProcessesError,
    argv_of,
    ended_by,
    hierarchies,
    pids,
    run,
)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}
"""Of everything that runs in a machine: what the host's user has set (proxies, KUBECONFIG) is not the machine's."""
START_SECONDS, STOP_SECONDS, SERVICE_SECONDS = 60.0, 60.0, 60.0
_BOUND = ("containerd", "kubelet", "kybernate")  # below /var/lib; containers' file systems cannot lie on an overlay


class MachineFailedError(ExternalError):
    """The machine {name} ended while it started. Its log, {log}, ends: {tail}"""


class MachineLateError(DeadlineError):
    """The machine {name} was not {state} within {seconds:g} s. Its log, {log}, ends: {tail}"""


class NotRunningError(NotFoundError):
    """The machine {name} is not running."""


class NoServiceError(NotFoundError):
    """The machine {name} has no service {service}. It has: {known}."""


class CgroupsInUseError(DeadlineError):
    """The cgroups {path} of a machine that has ended could not be removed within {seconds:g} s."""


@dataclass(frozen=True)
class Service:
    """A program that pid 1 keeps running. `needs` is a unix socket of the machine that must be there first."""

    name: str
    argv: Sequence[str | Path]
    needs: str = ""


@dataclass(frozen=True)
class State:
    """A service at one moment: its pid inside (0: it does not run), how often it was started, whether it is held."""

    pid: int
    starts: int
    held: bool


@dataclass
class Setup:
    """What a machine is started with. `ip` are lines for `ip -batch`, `before` what runs before the services."""

    services: Sequence[Service]
    ip: Sequence[str]
    cable: str = ""
    before: Sequence[Sequence[str | Path]] = ()
    binds: Sequence[tuple[Path, str]] = ()
    keep: Sequence[Path] = field(default_factory=list)


class Machine:
    """A machine named `name`, whose cgroups lie at `cgroup` in every hierarchy."""

    def __init__(self, folder: Path, name: str, cgroup: str) -> None:
        self.folder, self.name, self.cgroup = folder, name, cgroup
        self.disk = folder / "disk"
        self.logs = folder / "log"
        self._spec = folder / "init.json"
        self._pid = folder / "pid"
        self._outer: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Pid 1 as the host sees it. Raises NotRunningError."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pid.read_text())
            if str(self._spec) in argv_of(pid):
                return pid
        raise NotRunningError(name=self.name)

    @property
    def running(self) -> bool:
        with contextlib.suppress(NotRunningError):
            return bool(self.pid)
        return False

    def put(self, path: str, text: str) -> None:
        """Write a file onto the machine's disk before it starts; folders of an overlay only."""
        folder = next(folder for folder in init.OVERLAID if path.startswith(folder + "/"))
        file = self._upper(folder) / path.removeprefix(folder + "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def put_folder(self, path: str) -> None:
        """An empty folder on the machine's disk that hides what the host has there. Source: overlayfs, "opaque"."""
        folder = next(folder for folder in init.OVERLAID if path.startswith(folder + "/"))
        made = self._upper(folder) / path.removeprefix(folder + "/")
        made.mkdir(parents=True, exist_ok=True)
        os.setxattr(made, "trusted.overlay.opaque", b"y")

    def start(self, setup: Setup, plug: Callable[[int], None] = lambda pid: None) -> None:
        """Start pid 1, have the cable plugged in, and wait until the services have begun.

        Raises MachineFailedError, MachineLateError, what `plug` raises.
        """
        self.stop()
        for folder in (self.logs, *(self.disk / name for name in _BOUND)):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in map(Path, init.OVERLAID):
            self._upper(str(folder)).mkdir(parents=True, exist_ok=True)
            self._upper(str(folder)).with_name("work").mkdir(exist_ok=True)
        self._spec.write_text(json.dumps(self._told(setup), indent=1))
        self._spawn()
        try:
            self._await(lambda: self.running, "there")
            plug(self.pid)
            self._await(lambda: self._inside(init.CONTROL).exists(), "up")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """As if its power were cut: every process, mount and interface ends. The disk stays. Safe to repeat.

        Raises StuckProcessesError, CgroupsInUseError.
        """
        limit = time.monotonic() + STOP_SECONDS
        while found := {pid: argv[0] for pid in pids() if str(self._spec) in (argv := argv_of(pid))}:
            # Pid 1 first: unshare(1) reaps it, and ends. The other way round it may stay as a zombie of the host's.
            inner = [pid for pid, program in found.items() if program != "unshare"]
            with contextlib.ExitStack() as open_fds:
                for pid in inner or found:
                    with contextlib.suppress(ProcessLookupError):
                        pidfd = os.pidfd_open(pid)
                        open_fds.callback(os.close, pidfd)
                        pidfd_send_signal(pidfd, SIGKILL)
                        # Version 1: the frozen do not die before they are thawed, and pid 1 ends only after the last.
                        while not ended_by(pidfd, time.monotonic() + 0.02):
                            self._thaw()
                            if time.monotonic() > limit:
                                raise StuckProcessesError(seconds=STOP_SECONDS, pids=pid)
        if self._outer:
            self._outer.wait(STOP_SECONDS)
            self._outer = None
        self._pid.unlink(missing_ok=True)
        remove_cgroups(self.cgroup, limit)

    def remove(self) -> None:
        """`stop`, and the disk, too."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, argv: Sequence[str | Path], *, deadline_seconds: float = 60, stdin: bytes | None = None) -> str:
        """Run a program in the machine and return its output. Raises NotRunningError, the errors of `process.run`."""
        try:
            return run(self.enter(argv), deadline_seconds=deadline_seconds, stdin=stdin, env=ENVIRONMENT)
        except ProgramError as error:
            program = f"{self.name}: {' '.join(map(str, argv[:4]))}"
            raise ProgramError(program=program, code=error.code, stderr=error.stderr) from error

    def popen(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start a program in the machine. It ends with the machine; signals to the Popen reach nsenter(1) alone."""
        return subprocess.Popen(self.enter(argv), env={**ENVIRONMENT, **(env or {})}, **more)

    def services(self) -> dict[str, State]:
        """Raises NotRunningError."""
        return self._ask({"do": "list"})

    def service(self, name: str) -> State:
        """One of them. Raises NotRunningError, NoServiceError."""
        states = self.services()
        if name not in states:
            raise NoServiceError(name=self.name, service=name, known=", ".join(states))
        return states[name]

    def signal(self, service: str, number: int = SIGTERM) -> None:
        """Send the service a signal; when it ends it is started again."""
        self.service(service)
        self._ask({"do": "signal", "service": service, "number": number})

    def restart(self, service: str, number: int = SIGTERM) -> None:
        """End the service and wait until it is started again. Raises MachineLateError."""
        before = self.service(service).starts
        self.signal(service, number)
        self._await(lambda: (state := self.service(service)).pid and state.starts > before, f"running {service}")

    def halt(self, service: str, number: int = SIGTERM) -> None:
        """End the service and keep it so, until `resume`. Raises MachineLateError."""
        self.service(service)
        self._ask({"do": "hold", "service": service})
        self.signal(service, number)
        self._await(lambda: not self.service(service).pid, f"rid of {service}")

    def resume(self, service: str) -> None:
        """Let a halted service run again."""
        self._ask({"do": "start", "service": service})
        self._await(lambda: self.service(service).pid, f"running {service}")

    def log_tail(self, service: str = "init", characters: int = 2000) -> str:
        with contextlib.suppress(OSError):
            return (self.logs / service).read_text(errors="replace")[-characters:]
        return ""

    def path(self, inside: str) -> Path:
        """A file of the running machine, as the host reaches it. Raises NotRunningError."""
        return self._inside(inside)

    def _inside(self, path: str) -> Path:
        return Path(f"/proc/{self.pid}/root", path.lstrip("/"))

    def _upper(self, folder: str) -> Path:
        return self.disk / folder.strip("/").replace("/", "-") / "upper"

    def enter(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs `argv` in the machine. Raises NotRunningError."""
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "--", *(str(word) for word in argv)]

    def _told(self, setup: Setup) -> dict[str, Any]:
        services = [
            {"name": s.name, "argv": [str(word) for word in s.argv], "log": f"{self.logs}/{s.name}", "needs": s.needs}
            for s in setup.services
        ]
        binds = [(str(self.disk / name), f"/var/lib/{name}") for name in _BOUND]
        return {
            "name": self.name, "cgroup": self.cgroup, "pid": str(self._pid), "logs": str(self.logs),
            "disk": str(self.disk), "keep": [str(path) for path in setup.keep], "cable": setup.cable,
            "binds": binds + [(str(source), target) for source, target in setup.binds], "ip": list(setup.ip),
            "before": [[str(word) for word in argv] for argv in setup.before], "services": services,
        }  # fmt: skip

    def _spawn(self) -> None:
        namespaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        program = [sys.executable, "-I", "-S", init.__file__, str(self._spec)]
        try:
            with (self.logs / "init").open("ab") as log:
                self._outer = subprocess.Popen(
                    ["unshare", *namespaces, "--", *program], env=ENVIRONMENT, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
        except FileNotFoundError as error:
            raise ProgramMissingError(program="unshare (util-linux)") from error

    def _await(self, done: Callable[[], object], state: str) -> None:
        limit = time.monotonic() + START_SECONDS
        while not done():
            if self._outer and self._outer.poll() is not None:
                raise MachineFailedError(name=self.name, log=self.logs / "init", tail=self.log_tail())
            if time.monotonic() > limit:
                raise MachineLateError(
                    name=self.name, state=state, seconds=START_SECONDS, log=self.logs / "init", tail=self.log_tail()
                )
            time.sleep(0.02)

    def _ask(self, wish: dict[str, Any]) -> dict[str, State]:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(SERVICE_SECONDS)
            try:
                control.connect(str(self._inside(init.CONTROL)))
                with control.makefile("rw") as line:
                    line.write(json.dumps(wish) + "\n")
                    line.flush()
                    states = json.loads(line.readline())
            except (OSError, ValueError) as error:
                raise NotRunningError(name=self.name) from error
        return {name: State(**state) for name, state in states.items()}

    def _thaw(self) -> None:
        for folder in cgroup_folders(self.cgroup):
            state = folder / "freezer.state"
            with contextlib.suppress(OSError):
                if state.read_text().strip() != "THAWED":
                    state.write_text("THAWED")


def cgroup_folders(path: str) -> Iterator[Path]:
    """Every cgroup at and below `path` in every hierarchy, the deepest first."""
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / path.lstrip("/"), topdown=False):
            yield Path(folder)


def remove_cgroups(path: str, limit: float) -> None:
    """Remove the cgroups at and below `path`. They may be in use for a moment after their last process has ended.

    Raises CgroupsInUseError.
    """
    began = time.monotonic()
    while True:
        for folder in cgroup_folders(path):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if not any(cgroup_folders(path)):
            return
        if time.monotonic() > limit:
            raise CgroupsInUseError(path=path, seconds=limit - began)
        time.sleep(0.02)
