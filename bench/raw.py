"""The same workload without anyone who manages it: `runc restore` of a container, `criu restore` of a bare process.

Nobody holds the client here: it asks again each millisecond until the server listens. CRIU gets the options that the
product gives it. These figures are what the machine, CRIU and runc cost; they are shown beside the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import freezer
from bench.namespace import Namespace, namespace
from kybernate import criu
from kybernate.criu import skeleton
from kybernate.errors import DeadlineError
from kybernate.lab import Containerd
from kybernate.lab.process import ProgramError, end, run

RUNC_NAME = "runc restore"
CRIU_NAME = "criu restore"
_STEP_SECONDS = 60.0
_RUNC: tuple[str, ...] = ("runc", "--root", "/run/bench-runc")
_PR_SET_CHILD_SUBREAPER = 36


class EndDeadlineError(DeadlineError):
    """Process {pid} did not end within {seconds} s after it was dumped."""


@dataclass
class RawRunc:
    """A freezer in a container like another one, made by runc alone. `parked` is where its images lie on disk."""

    folder: Path
    container: str
    net: Namespace
    text: str

    @property
    def parked(self) -> Path:
        return self.folder / "images"

    def park(self) -> None:
        """`runc checkpoint` into `parked`. Raises ProgramError, ProgramDeadlineError."""
        self._checkpoint(self.parked)

    def park_durably(self, memory: Path) -> float:
        """Milliseconds of a checkpoint into `memory` (a tmpfs) and a copy of it into `parked`, with fsync."""
        shutil.rmtree(self.parked, ignore_errors=True)
        shutil.rmtree(memory, ignore_errors=True)
        began = time.perf_counter()
        self._checkpoint(memory)
        copy_durably(memory, self.parked)
        return (time.perf_counter() - began) * 1000

    def wake(self) -> float:
        """Milliseconds from the start of `runc restore` to the full reply. Raises ReplyError, ProgramError."""
        criu.drop_empty_tmpfs(self.parked)
        words: list[str | Path] = ["restore", "--detach", "--bundle", self.folder, "--image-path", self.parked]
        words += ["--work-path", self._work(), "--manage-cgroups-mode", "ignore", self.container]
        stand = criu.Stand(self.folder / "mounts")
        try:
            self._conf(criu.restore_conf(external=stand.make(skeleton.load(self.parked))))
            return _timed([*_RUNC, *words], self.net.address, self.text)
        finally:
            stand.clear()

    def _checkpoint(self, images: Path) -> None:
        shutil.rmtree(images, ignore_errors=True)
        images.mkdir(parents=True)
        pid = json.loads(run([*_RUNC, "state", self.container]))["pid"]
        known = skeleton.skeletons(pid)
        external = {one.mountpoint: one.key for one in known}
        self._conf(criu.dump_conf(empty_tmpfs=criu.empty_tmpfs(pid), external=external))
        _quiet([*_RUNC, "checkpoint", "--image-path", images, "--work-path", self._work(), self.container])
        skeleton.save(images, known)

    def _conf(self, text: str) -> None:
        (self.folder / "criu.conf").write_text(text)

    def _work(self) -> Path:
        (self.folder / "work").mkdir(exist_ok=True)
        return self.folder / "work"


@contextlib.contextmanager
def raw_runc(containerd: Containerd, like: Path, number: int) -> Iterator[RawRunc]:
    """A second container from the config.json of the bundle `like`, serving: the same mounts, masks and arguments.

    Its root is an overlay of the same image, its network namespace and its cgroup are its own.
    """
    container = f"runc-{number}"
    folder = containerd.root.parent / container
    rootfs = folder / "rootfs"
    rootfs.mkdir(parents=True)
    with namespace(containerd.bridge.name, number) as net:
        found = RawRunc(folder, container, net, f"{container}-{time.time_ns()}")
        try:
            containerd.ctr("images", "mount", "--rw", freezer.image().name, str(rootfs))
            (folder / "config.json").write_text(json.dumps(_config(like, rootfs, net)))
            _quiet([*_RUNC, "run", "--detach", "--bundle", folder, container])
            freezer.remember(net.address, found.text)
            yield found
        finally:
            with contextlib.suppress(ProgramError):
                _quiet([*_RUNC, "delete", "--force", container])
            with contextlib.suppress(ProgramError):
                containerd.ctr("images", "unmount", "--rm", str(rootfs))
            shutil.rmtree(folder, ignore_errors=True)


def _config(like: Path, rootfs: Path, net: Namespace) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((like / "config.json").read_bytes())
    config["root"]["path"] = str(rootfs)
    config["linux"]["cgroupsPath"] = f"/kybernate-bench-{rootfs.parent.name}"
    config["annotations"] = {"org.criu.config": str(rootfs.parent / "criu.conf")}
    config.pop("hooks", None)
    for entry in config["linux"]["namespaces"]:
        if entry["type"] == "network":
            entry["path"] = net.path
    return config


@dataclass
class RawCriu:
    """A freezer as a bare process in a network namespace; `pid` is its own before and after."""

    folder: Path
    net: Namespace
    process: subprocess.Popen[bytes]
    text: str

    def park(self) -> None:
        """`criu dump`; the process is gone. Raises ProgramError, EndDeadlineError."""
        shutil.rmtree(self.folder / "images", ignore_errors=True)
        (self.folder / "images").mkdir()
        (self.folder / "criu.conf").write_text(criu.dump_conf())
        pidfd = os.pidfd_open(self.process.pid)
        try:
            _quiet([*self._criu("dump"), "--tree", str(self.process.pid)])
            if not select.select([pidfd], [], [], _STEP_SECONDS)[0]:
                raise EndDeadlineError(pid=self.process.pid, seconds=_STEP_SECONDS)
            # A restore needs the pid to be free, so the zombie must go: it is our child, or was left to us by CRIU.
            os.waitpid(self.process.pid, 0)
        finally:
            os.close(pidfd)

    def wake(self) -> float:
        """Milliseconds from the start of `criu restore` to the full reply. Raises ReplyError, ProgramError."""
        (self.folder / "criu.conf").write_text(criu.restore_conf())
        return _timed([*self._criu("restore"), "--restore-detached"], self.net.address, self.text)

    def _criu(self, verb: str) -> list[str | Path]:
        argv: list[str | Path] = ["nsenter", f"--net={self.net.path}", "criu", verb, "--manage-cgroups=ignore"]
        return [
            *argv,
            "--images-dir",
            self.folder / "images",
            "--config",
            self.folder / "criu.conf",
            "--log-file",
            "log",
        ]


@contextlib.contextmanager
def raw_criu(containerd: Containerd, size_mib: int, number: int) -> Iterator[RawCriu]:
    """A freezer of this size, serving, without a container."""
    folder = containerd.root.parent / f"criu-{size_mib}"
    folder.mkdir()
    program = freezer.programs()["freezer"]
    with namespace(containerd.bridge.name, number) as net, _subreaper():
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            ["nsenter", f"--net={net.path}", program, "-memory", str(size_mib)],
            stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True,
        )  # fmt: skip
        try:
            found = RawCriu(folder, net, process, f"{folder.name}-{time.time_ns()}")
            freezer.remember(net.address, found.text)
            yield found
        finally:
            end(lambda: _in_namespace(net) - {net.holder})
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, 0)
            process.returncode = process.returncode or 0  # waited for above; Popen must not wonder
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _subreaper() -> Iterator[None]:
    """Processes that lose their parent below us become our children, meanwhile. Source: prctl(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def copy_durably(source: Path, target: Path) -> None:
    """Copy a folder of files onto disk; every file and the folder are synced."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        with path.open("rb") as reading, (target / path.name).open("wb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)
            writing.flush()
            os.fsync(writing.fileno())
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _in_namespace(net: Namespace) -> set[int]:
    """Processes in the namespace: a restored freezer is nobody's child, but still there."""
    found = set()
    with contextlib.suppress(OSError):
        wanted = os.readlink(net.path)
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/ns/net") == wanted:
                    found.add(int(name))
    return found


def _timed(argv: list[str | Path], address: str, text: str) -> float:
    """Start a restore, and ask until it answers; milliseconds for both together."""
    words = [str(word) for word in argv]
    quiet = subprocess.DEVNULL
    began = time.perf_counter()
    with subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet) as process:
        try:
            freezer.woken(address, text, retry=lambda: not process.poll())
            spent = (time.perf_counter() - began) * 1000
            process.wait(_STEP_SECONDS)
        finally:
            process.kill()
    if process.returncode:
        raise ProgramError(program=" ".join(words[:4]), code=process.returncode, stderr="see its log")
    return spent


def _quiet(argv: list[str | Path]) -> None:
    """Run a program that may leave a process behind: its output is no pipe, which that process would keep open."""
    words = [str(word) for word in argv]
    quiet = subprocess.DEVNULL
    done = subprocess.run(words, stdin=quiet, stdout=quiet, stderr=quiet, timeout=_STEP_SECONDS, check=False)
    if done.returncode:
        raise ProgramError(program=" ".join(words[:4]), code=done.returncode, stderr="see its log")
