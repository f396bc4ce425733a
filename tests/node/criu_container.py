"""A real container for tests of CRIU: runc, a bundle as containerd makes it, the host's own programs as its image.

The root file system is an overlay over the host's. The network namespace is one of its own, given by path, as in a pod.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import textwrap
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PYTHON = "/usr/bin/python3"
DEADLINE = 30

# What containerd's default profile masks and makes read-only.
MASKED = ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"]
MASKED += ["/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi", "/sys/devices/virtual/powercap"]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

CAPABILITIES = [
    f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "KILL", "SETUID", "SETGID", "SYS_PTRACE", "SYS_ADMIN")
]

_NOTHING = ["nosuid", "noexec", "nodev"]
_PTS = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
_SIZE = "size=65536k"
MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": _NOTHING},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", _SIZE]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": _PTS},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*_NOTHING, "mode=1777", _SIZE]},
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": _NOTHING},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_NOTHING, "ro"]},
    {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", _SIZE]},
]

# A server that keeps state in memory: a counter. It holds a lock, a deleted file, and what a test adds. Whom it accepts
# it greets.
SERVER = """
import fcntl, os, socket, sys
count = 0
lock = open("/var/tmp/lock", "w"); fcntl.flock(lock, fcntl.LOCK_EX)
gone = open("/var/tmp/gone", "w+"); gone.write("still here"); gone.flush(); os.unlink("/var/tmp/gone")
ballast = bytearray(os.urandom(1 << 20)) * int(os.environ.get("BALLAST_MIB", "0"))
exec(os.environ.get("EXTRA", ""))
server = socket.create_server(("", 8080))
print("ready", flush=True)
while True:
    peer, _ = server.accept()
    peer.sendall(b"hello\\n")
    while data := peer.recv(100):
        count += 1
        gone.seek(0)
        peer.sendall(f"{count} {gone.read()}\\n".encode())
    peer.close()
"""

# A client in the container's network: it says what greets it, then a line on its stdin is a request on its one
# connection.
CLIENT = """
import socket, sys
peer = socket.create_connection(("127.0.0.1", 8080), 10)
print(peer.recv(100).decode().strip(), flush=True)
for line in sys.stdin:
    peer.sendall(line.encode())
    print(peer.recv(100).decode().strip(), flush=True)
"""


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=check)


class Container:
    def __init__(self, folder: Path, program: Sequence[str], env: dict[str, str], changes: dict[str, Any]) -> None:
        self.id = f"criu-test-{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.bundle = folder / "bundle"
        self.conf = folder / "criu.conf"
        self.work = folder / "work"
        self.output = -1
        for path in (self.bundle / "rootfs", self.work, folder / "upper", folder / "overlay"):
            path.mkdir(parents=True, mode=0o700)
        (folder / "upper").chmod(0o755)
        spec = self._spec([*program], env)
        spec["mounts"] += changes.pop("mounts", [])
        spec.update(changes)
        (self.bundle / "config.json").write_text(json.dumps(spec))

    def _spec(self, program: list[str], env: dict[str, str]) -> dict[str, Any]:
        return {
            "ociVersion": "1.1.0",
            "hostname": "test",
            "annotations": {"org.criu.config": str(self.conf)},
            "process": {
                "args": program,
                "cwd": "/",
                "env": ["PATH=/usr/bin:/bin:/usr/sbin", *(f"{name}={value}" for name, value in env.items())],
                "user": {"uid": 0, "gid": 0},
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
                "noNewPrivileges": True,
            },
            "root": {"path": "rootfs"},
            "mounts": list(MOUNTS),
            "linux": {
                "cgroupsPath": f"/{self.id}",
                "namespaces": [
                    *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                    {"type": "network", "path": f"/run/netns/{self.id}"},
                ],
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
            },
        }

    # -- its life

    def prepare(self) -> None:
        run("ip", "netns", "add", self.id)
        run("ip", "-n", self.id, "link", "set", "lo", "up")
        options = f"lowerdir=/,upperdir={self.folder}/upper,workdir={self.folder}/overlay"
        run("mount", "-t", "overlay", "overlay", "-o", options, str(self.bundle / "rootfs"))

    def start(self) -> None:
        assert self._with_its_output(["runc", "run", "--detach", "--bundle", str(self.bundle), self.id]) == 0

    def wait_until_ready(self) -> None:
        said = b""
        while b"ready" not in said:
            piece = os.read(self.output, 1000)
            assert piece, said.decode()
            said += piece

    @property
    def pid(self) -> int:
        return int(json.loads(run("runc", "state", self.id).stdout)["pid"])

    @property
    def status(self) -> str:
        state = run("runc", "state", self.id, check=False)
        return str(json.loads(state.stdout)["status"]) if state.returncode == 0 else "gone"

    def dump(self, images: Path, conf: str, *options: str) -> subprocess.CompletedProcess[str]:
        images.mkdir(exist_ok=True)
        self.conf.write_text(conf)
        where = ("--image-path", str(images), "--work-path", str(self.work))
        return run("runc", "checkpoint", *where, *options, self.id, check=False)

    def restore(self, images: Path, conf: str) -> subprocess.CompletedProcess[str]:
        self.conf.write_text(conf)
        where = ("--image-path", str(images), "--work-path", str(self.work), "--bundle", str(self.bundle))
        command = ["runc", "restore", "--detach", "--manage-cgroups-mode", "ignore", *where, self.id]
        code = self._with_its_output(command)
        said = "" if code == 0 else os.read(self.output, 10000).decode(errors="replace")
        return subprocess.CompletedProcess(command, code, "", said)

    def _with_its_output(self, command: list[str]) -> int:
        """Run runc, whose stdout and stderr become the container's: a new pipe, `self.output`."""
        reader, writer = os.pipe()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
        os.close(writer)
        if self.output >= 0:
            os.close(self.output)
        self.output = reader
        pidfd = os.pidfd_open(process.pid)  # Popen.wait with a timeout polls, in steps of up to 50 ms
        try:
            if not select.select([pidfd], [], [], DEADLINE)[0]:
                process.kill()
            return process.wait()
        finally:
            os.close(pidfd)

    def inside(self, code: str) -> str:
        """What Python code prints in the container's namespaces (by exec)."""
        return run("runc", "exec", self.id, PYTHON, "-c", textwrap.dedent(code)).stdout.strip()

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A connection that the server has accepted: CRIU refuses to dump one that waits for that."""
        command = ["nsenter", f"--net=/run/netns/{self.id}", PYTHON, "-c", CLIENT]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "hello\n"
                yield Client(process)
            finally:
                process.kill()

    def clean(self) -> None:
        run("runc", "delete", "--force", self.id, check=False)
        if self.output >= 0:
            os.close(self.output)
        run("umount", str(self.bundle / "rootfs"), check=False)
        run("ip", "netns", "delete", self.id, check=False)


class Client:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("x\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def container(
    folder: Path, program: Sequence[str] = (PYTHON, "-c", SERVER), env: dict[str, str] | None = None, **changes: Any
) -> Iterator[Container]:
    """A running container whose program has printed "ready"."""
    made = Container(folder, program, env or {}, changes)
    try:
        made.prepare()
        made.start()
        made.wait_until_ready()
        yield made
    finally:
        made.clean()


def eventually(condition: Any, limit_seconds: float = 10.0) -> Any:
    """The first true value of `condition()`. Fails after the limit."""
    end = time.monotonic() + limit_seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {limit_seconds} s"
        time.sleep(0.01)
    return value
