"""A bed for the shim's tests: a private containerd, the installed shim, and an agent that is a stand-in.

The stand-in listens at hook.sock and answers as it is told to, so it shows what hook and keeper do with each answer; it
keeps no state, decides nothing and has no store. Everything else is real: containerd, its shim, runc, CRIU, cgroups.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kybernate_shim import cgroup, wire
from kybernate_shim.install import install

CONF = "tcp-established\nfile-locks\nlink-remap\nghost-limit 1073741824\nnetwork-lock skip\n"
RESTORE_CONF = CONF + "manage-cgroups=ignore\n"
"""As the agent sends it: else CRIU makes anew what it saw of other hierarchies, and fails where a group has gone."""
MANAGED = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.container-name": "app",
    "io.kubernetes.cri.sandbox-uid": "uid-1",
    "kybernate.io/containers": "app",
}
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"


def until(condition: Callable[[], Any], seconds: float = 10, what: str = "") -> Any:
    """Poll `condition` until it is true, and return it."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not so within {seconds} s: {what or condition}"
        time.sleep(0.01)


class StandIn:
    """The agent's side of hook.sock: `answers` maps verbs to replies or to functions of the request."""

    def __init__(self, run: Path) -> None:
        self.answers: dict[str, Any] = {"create": {"ok": True, "action": "start"}, "post-dump": {"ok": True}}
        self.heard: list[dict[str, Any]] = []
        self.path = run / "hook.sock"
        self.server = wire.listen(str(self.path))
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        self.server.settimeout(0.1)
        while not self.closed.is_set():
            try:
                fd, _ = self.server._accept()  # type: ignore[attr-defined]
            except TimeoutError:
                continue
            threading.Thread(target=self._one, args=(socket.socket(fileno=fd),), daemon=True).start()

    def _one(self, link: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError), link, link.makefile("rwb") as stream:  # who asked may not wait
            request = json.loads(stream.readline())
            self.heard.append(request)
            answer = self.answers.get(request["verb"], {"ok": True})
            reply = answer(request) if callable(answer) else answer
            if reply is not None:
                stream.write(wire.encode(reply))

    def verbs(self) -> list[str]:
        return [request["verb"] for request in self.heard]

    def close(self) -> None:
        self.closed.set()
        self.thread.join()
        self.server.close()
        self.path.unlink(missing_ok=True)


class Bed:
    """Everything under one folder; `close` leaves nothing."""

    def __init__(self, root: Path, criu_wrapper: str = "") -> None:
        self.root, self.run = root, root / "run"
        wrappers = root / "wrappers"
        wrappers.mkdir(parents=True)
        runc = Path(shutil.which("runc") or "/usr/sbin/runc")
        path = f"{wrappers}:{os.environ['PATH']}"
        self.wrappers = wrappers
        self.launcher = install(root / "prefix", self.run, runc, path, python="/usr/bin/python3")
        self.socket, self.containers = root / "c.sock", list[Container]()
        config = root / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{root}/lib"\nstate = "{root}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.socket}.ttrpc"\n'
        )
        with open(root / "containerd.log", "wb") as log:
            self.daemon = subprocess.Popen(["containerd", "-c", config], stdout=log, stderr=log)
        until(
            lambda: subprocess.run(self.ctr("version"), check=False, capture_output=True).returncode == 0,
            30,
            "containerd",
        )
        self.agent = StandIn(self.run)

    def ctr(self, *words: str | Path) -> list[str | Path]:
        return ["ctr", "--address", str(self.socket), *words]

    def criu(self, script: str) -> None:
        """Put a program in front of CRIU; an empty script takes it away."""
        path = self.wrappers / "criu"
        path.unlink(missing_ok=True)
        if script:
            path.write_text("#!/bin/sh\n" + script)
            path.chmod(0o755)

    def container(self, script: str, managed: bool = True, **more: Any) -> Container:
        made = Container(self, script, managed, **more)
        self.containers.append(made)
        return made

    def close(self) -> None:
        for container in self.containers:
            container.close()
        self.agent.close()
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait(20)


class Container:
    """One busybox container, driven by ctr and by its keeper's socket."""

    def __init__(
        self,
        bed: Bed,
        script: str,
        managed: bool,
        options: tuple[str, ...] = (),
        notes: dict[str, str] | None = None,
        check: bool = True,
        rootfs: Path | None = None,
        command: tuple[str, ...] = (),
    ) -> None:
        self.bed, self.id = bed, f"t-{uuid.uuid4().hex[:12]}"
        self.rootfs, self.log = rootfs or bed.root / self.id, bed.root / f"{self.id}.log"
        if rootfs is None:
            _fill(self.rootfs)
        notes = {**(MANAGED if managed else {}), **(notes or {})}
        annotated = [word for key, value in notes.items() for word in ("--annotation", f"{key}={value}")]
        self.ran = subprocess.run(
            bed.ctr(
                "run", "--detach", "--rootfs", "--runc-binary", bed.launcher, "--runc-root", bed.root / "runc",
                "--log-uri", f"file://{self.log}", "--cpu-shares", "0",
                *annotated, *options, self.rootfs, self.id, *(command or ("/bin/sh", "-c", script)),
            ),
            check=False, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert self.ran.returncode == 0 or not check, self.ran.stderr
        self.folder = bed.run / "keepers" / self.id
        self.images = bed.root / f"{self.id}.images"

    def ctr(self, *words: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.bed.ctr(*words), check=False, capture_output=True, text=True, timeout=seconds)

    def runc(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """The launcher, called as containerd's shim does."""
        argv = [str(self.bed.launcher), "--root", f"{self.bed.root}/runc/default", *words]
        how = {"check": False, "capture_output": True, "text": True, "timeout": 30, **more}
        return subprocess.run(argv, **how)  # noqa: PLW1510

    def ask(self, verb: str, **more: Any) -> dict[str, Any]:
        return wire.ask(f"{self.folder}/sock", {"verb": verb, **more}, 60)

    def ok(self, verb: str, **more: Any) -> dict[str, Any]:
        reply = self.ask(verb, **more)
        assert reply["ok"], reply
        return reply

    def state(self) -> str:
        return str(self.record()["state"])

    def record(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return facts

    def dump(self, **more: Any) -> dict[str, Any]:
        self.images.mkdir(exist_ok=True)
        request = {"images": str(self.images), "work": str(self.images), "conf": CONF, "deadline_seconds": 30, **more}
        return self.ask("dump", **request)

    def restore(self, **more: Any) -> dict[str, Any]:
        request = {
            "images": str(self.images),
            "work": str(self.images),
            "conf": RESTORE_CONF,
            "deadline_seconds": 30,
            **more,
        }
        return self.ask("restore", **request)

    def lines(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def grows(self) -> None:
        """The container writes on."""
        before = len(self.lines())
        until(lambda: len(self.lines()) > before, 10, f"{self.id} writes")

    def task(self) -> str:
        """containerd's word for the task: RUNNING, STOPPED, or nothing."""
        for line in self.ctr("task", "ls").stdout.splitlines():
            if line.startswith(self.id):
                return line.split()[2]
        return ""

    def wait_exit(self) -> int:
        """The exit code that containerd reports, once it has one; the task is deleted then."""
        until(lambda: self.task() == "STOPPED", 20, f"{self.id} stopped")
        said = self.ctr("task", "delete", self.id).stderr
        return int(said.rsplit("code ", 1)[1].rstrip('"\n')) if "exit code" in said else 0

    def close(self) -> None:
        self.ctr("task", "kill", "--signal", "KILL", self.id)
        if self.task():
            until(lambda: self.task() in ("STOPPED", ""), 20, f"{self.id} stopped")
        self.ctr("task", "delete", "--force", self.id)
        self.ctr("container", "delete", self.id)


def _fill(rootfs: Path) -> None:
    """The smallest tree that a shell runs in."""
    for folder in ("bin", "proc", "sys", "dev", "tmp", "etc"):
        (rootfs / folder).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", rootfs / "bin/busybox")
    for name in ("sh", "sleep", "cat", "kill", "ps", "echo", "true", "false", "id"):
        (rootfs / "bin" / name).symlink_to("busybox")


def groups_of(path: str) -> list[str]:
    """The cgroup folders that exist for a container's path."""
    return [folder for folder in cgroup.of_path(path).values() if os.path.isdir(folder)]


def nothing_left(container: Container) -> None:
    """No folder of ours, no link, no cgroup, nothing of runc's."""
    assert not container.folder.exists()
    links = [os.path.basename(os.readlink(link)) for link in (container.bed.run / "pids").iterdir()]
    assert container.id not in links
    assert groups_of(f"/default/{container.id}") == []
    assert not (container.bed.root / "runc/default" / container.id).exists()
