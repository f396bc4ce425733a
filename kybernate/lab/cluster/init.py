"""Pid 1 of a lab machine: makes namespaces into a machine, starts its services, and starts them again when they end.

`init.py SPEC` is run by unshare(1) in new mount, network, pid, UTS and IPC namespaces, as a plain file with the
standard library alone, so it stays small. SPEC is JSON, written by `machine.Machine`.

All else of the machine hangs on this process: when it is killed, the kernel kills every process below it, then drops
its mounts and its network. What the machine has as its own:

    disk      stays when it is taken away: the folders /etc, /opt, /usr/local, /var/lib, /var/log as overlays over the
              host's, and folders of SPEC bound to their places (an overlay cannot hold a container's overlay)
    memory    /run and /dev/shm
    kernel    network, host name, process table, and a cgroup in each hierarchy

The other folders are the host's. Mounts of the host in places where others work are let go at once: a mount that stays
in here could not be removed out there.

A service is started anew after a short pause, which doubles while it fails at once. Whoever wants something of pid 1
connects to /run/lab.sock and sends one line of JSON: {"do": "list"}, {"do": "signal", "service": S, "number": N},
{"do": "hold", "service": S} (not started again from now on), {"do": "start", "service": S}. The answer is one line: the
services with their pids in here, and how often each was started.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

CONTROL = "/run/lab.sock"
OVERLAID = ("/etc", "/opt", "/usr/local", "/var/lib", "/var/log")
_OF_OTHERS = ("/run", "/tmp", "/var/lib", "/var/tmp")  # here labs, container engines and people mount things
_BIND, _MOVE, _REC, _SHARED, _DETACH = 0x1000, 0x2000, 0x4000, 1 << 20, 2
_CABLE_SECONDS = 30.0
_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")  # what the kubelet gives its pods
_FIRST_PAUSE, _LONGEST_PAUSE, _STEADY_SECONDS = 0.1, 2.0, 5.0

# What the kubelet wants of the host's kernel. In here it reads these, finds all well and sets nothing.
# Source: kubernetes, staging/src/k8s.io/component-helpers/node/util/sysctl/sysctl.go.
_KERNEL = {
    "vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode() or None, flags, data.encode() or None):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {kind or source} on {target}: {os.strerror(error)}")


def bind(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    mount(source, target, flags=_BIND | _REC)


def below(path: str, folders: tuple[str, ...] | list[str]) -> bool:
    return any(path.startswith(folder + "/") for folder in folders)


def let_go(keep: list[str]) -> None:
    """Detach what others have mounted, but for what `keep` lies on or holds."""
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4].encode().decode("unicode_escape") for line in file]
    for point in reversed(points):
        needed = any(below(f"{path}/", [point]) or below(f"{point}/", [path]) for path in keep)
        if below(point, _OF_OTHERS) and not needed:
            _libc.umount2(point.encode(), _DETACH)


def join_cgroup(path: str) -> None:
    """Be in a cgroup of the machine's own in every hierarchy, /PATH/system; containers' lie beside it."""
    root = "/sys/fs/cgroup"
    unified = os.path.exists(f"{root}/cgroup.procs")
    for hierarchy in [root] if unified else sorted(entry.path for entry in os.scandir(root)):
        if not os.path.exists(f"{hierarchy}/cgroup.procs"):
            continue
        group = hierarchy
        for name in [*path.strip("/").split("/"), "system"]:
            above, group = group, f"{group}/{name}"
            for controller in _CONTROLLERS:  # version 2: given on to children one by one, where they are there at all
                with contextlib.suppress(OSError), open(f"{above}/cgroup.subtree_control", "w") as children:
                    children.write(f"+{controller}")
            with contextlib.suppress(FileExistsError):
                os.mkdir(group)
            for file in ("cpuset.cpus", "cpuset.mems"):  # version 1: empty in a new group, which then takes nobody
                with (
                    contextlib.suppress(OSError),
                    open(f"{above}/{file}") as have,
                    open(f"{group}/{file}", "w") as want,
                ):
                    want.write(have.read())
        with open(f"{group}/cgroup.procs", "w") as members:
            members.write("0")


def mounts(spec: dict[str, Any]) -> None:
    """The machine's own folders. unshare(1) has made all mounts private: nothing of this shows outside."""
    let_go(spec["keep"])
    mount("tmpfs", "/run", "tmpfs", data="mode=755")
    for folder in ("/run/lock", "/run/keep"):
        os.mkdir(folder)
    kept = [(path, f"/run/keep/{number}") for number, path in enumerate(spec["keep"]) if below(path, OVERLAID)]
    for path, aside in kept:
        bind(path, aside)
    for folder in filter(os.path.isdir, OVERLAID):
        disk = f"{spec['disk']}/{folder.strip('/').replace('/', '-')}"
        mount("overlay", folder, "overlay", data=f"lowerdir={folder},upperdir={disk}/upper,workdir={disk}/work")
    for path, aside in kept:
        bind(aside, path)
        _libc.umount2(aside.encode(), _DETACH)
    for source, target in spec["binds"]:
        bind(source, target)
    mount("tmpfs", "/dev/shm", "tmpfs", data="mode=1777")
    bind("/sys/fs/cgroup", "/run/keep/cgroup")  # /sys of our own network, with the cgroups put back
    mount("sysfs", "/sys", "sysfs")
    bind("/run/keep/cgroup", "/sys/fs/cgroup")
    _libc.umount2(b"/run/keep/cgroup", _DETACH)
    mount("proc", "/proc", "proc")
    os.mkdir("/run/kernel")
    for path, value in _KERNEL.items():
        file = f"/run/kernel/{path.replace('/', '.')}"
        with open(file, "w") as out:
            out.write(f"{value}\n")
        mount(file, f"/proc/sys/{path}", flags=_BIND)
    mount("", "/", flags=_REC | _SHARED)  # among the machine's own: mountPropagation works as on any node


def network(spec: dict[str, Any]) -> None:
    """Addresses and routes, once the cable is plugged in from outside."""
    limit = time.monotonic() + _CABLE_SECONDS
    while not os.path.exists(f"/sys/class/net/{spec['cable']}"):
        if time.monotonic() > limit:
            raise TimeoutError(f"nobody plugged in the cable {spec['cable']} within {_CABLE_SECONDS} s")
        time.sleep(0.01)
    subprocess.run(["ip", "-batch", "-"], input="\n".join(spec["ip"]).encode(), timeout=30, check=True)
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("1")


@dataclass
class Service:
    """A program that should run. `due` is when it is to be started; infinity while it runs or is held."""

    name: str
    argv: list[str]
    log: str
    needs: str = ""  # a unix socket that must be there first
    pid: int = 0
    starts: int = 0
    began: float = 0
    pause: float = _FIRST_PAUSE
    due: float = 0
    held: bool = False

    def start(self, now: float) -> None:
        if self.needs and not os.path.exists(self.needs):
            self.due = now + 0.05
            return
        files = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        try:
            self.pid = os.posix_spawnp(
                self.argv[0], self.argv, os.environ, file_actions=files, setsid=True, setsigdef=[signal.SIGPIPE]
            )
        except OSError as error:
            print(f"{self.name} cannot be started: {error}", flush=True)
            self.due = now + _LONGEST_PAUSE
            return
        self.starts += 1
        self.began, self.due = now, float("inf")

    def ended(self, now: float, status: int) -> None:
        print(f"{self.name}, pid {self.pid}, ended with {os.waitstatus_to_exitcode(status)}", flush=True)
        self.pause = _FIRST_PAUSE if now - self.began > _STEADY_SECONDS else min(2 * self.pause, _LONGEST_PAUSE)
        self.pid = 0
        self.due = float("inf") if self.held else now + self.pause


class Init:
    """The loop: reap, start what is due, answer."""

    def __init__(self, services: list[Service]) -> None:
        self.services = services

    def run(self) -> None:
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(CONTROL)
            os.chmod(CONTROL, 0o600)
            control.listen()
            while True:
                self._reap()
                now = time.monotonic()
                for service in self.services:
                    if service.due <= now:
                        service.start(now)
                wait = min(service.due for service in self.services) - time.monotonic()
                readable, _, _ = select.select([woken, control.fileno()], [], [], max(0.0, min(wait, 3600.0)))
                if woken in readable:
                    os.read(woken, 4096)
                if control.fileno() in readable:
                    self._answer(control)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                for service in self.services:
                    if service.pid == pid:
                        service.ended(time.monotonic(), status)

    def _answer(self, control: socket.socket) -> None:
        connection, _ = control.accept()
        with connection, contextlib.suppress(OSError, ValueError, KeyError):
            connection.settimeout(5)
            with connection.makefile("rw") as line:
                wish = json.loads(line.readline())
                if wish["do"] != "list":
                    self._do(wish)
                states = {s.name: {"pid": s.pid, "starts": s.starts, "held": s.held} for s in self.services}
                line.write(json.dumps(states) + "\n")

    def _do(self, wish: dict[str, Any]) -> None:
        service = next((s for s in self.services if s.name == wish["service"]), None)
        if service is None:
            return  # the answer, without it, says so
        if wish["do"] == "signal" and service.pid:
            os.kill(service.pid, wish["number"])
        elif wish["do"] == "hold":
            service.held, service.due = True, float("inf")
        elif wish["do"] == "start":
            service.held = False
            if not service.pid:
                service.due, service.pause = 0, _FIRST_PAUSE


def main(path: str) -> None:
    with open(path) as file:
        spec = json.load(file)
    log = os.open(f"{spec['logs']}/init", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    join_cgroup(spec["cgroup"])
    with open(f"{spec['pid']}.new", "w") as out:
        out.write(os.readlink("/proc/self"))  # /proc is still the host's: our pid as it is seen there
    mounts(spec)
    socket.sethostname(spec["name"])
    os.chdir("/")
    os.rename(f"{spec['pid']}.new", spec["pid"])  # from now on one may enter, and plug in the cable
    network(spec)
    for argv in spec["before"]:
        subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=60, check=True)
    Init([Service(**service) for service in spec["services"]]).run()


if __name__ == "__main__":
    main(sys.argv[1])
