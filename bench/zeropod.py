"""The peer: zeropod's shim under the lab's containerd, without Kubernetes.

`ctr run` with its shim, the annotations that containerd's CRI plugin would set, and its own CRIU options (those that
its installer writes into CRIU's default configuration) for its processes alone. It dumps by itself when the server was
idle for `_IDLE`, and restores at the next connection: an eBPF program sends that to a proxy in the shim.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import freezer
from bench.namespace import namespace
from kybernate.errors import DeadlineError
from kybernate.lab import Containerd
from kybernate.lab.process import ProgramError

NAME = f"zeropod {freezer.VERSION}"
_IDLE = "500ms"
_CRIU_CONFIG = "tcp-close\nskip-in-flight\nnetwork-lock skip\n"  # as zeropod v0.12.1 cmd/installer/main.go has it
_DUMPED = "checkpointing done in"
_FAILED = ("scale down failed", "restore failed", "error restoring")
_UID = "00000000-0000-0000-0000-00000000000{number}"


class DumpDeadlineError(DeadlineError):
    """zeropod did not dump its container {container} within {seconds} s. containerd's log ends: {log}"""


@dataclass
class Peer:
    """One container of the peer, running or asleep."""

    containerd: Containerd
    container: str
    address: str
    text: str

    def wake(self) -> float:
        """Milliseconds from connect to full reply of a sleeper. Raises ReplyError where it lost its state."""
        return freezer.woken(self.address, self.text)

    def await_dump(self, seconds: float = 60.0) -> None:
        """Until it sleeps again; call it when a request was just answered. Raises DumpDeadlineError."""
        mark = self.containerd.log.stat().st_size
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            with self.containerd.log.open("rb") as log:
                log.seek(mark)
                said = log.read().decode(errors="replace")
            if _DUMPED in said:
                return
            if any(word in said for word in _FAILED):
                break
            time.sleep(0.01)
        tail = self.containerd.log.read_text(errors="replace")[-2000:]
        raise DumpDeadlineError(container=self.container, seconds=seconds, log=tail)


@contextlib.contextmanager
def peer(containerd: Containerd, size_mib: int, number: int) -> Iterator[Peer]:
    """A freezer of this size that sleeps under zeropod."""
    container = f"zeropod-{size_mib}"
    _log_file(container, number)
    with namespace(containerd.bridge.name, number) as net:
        words = ["run", "--detach", "--null-io", "--runtime", str(_runtime(containerd.root))]
        words += ["--with-ns", f"network:{net.path}", "--cgroup", f"/kybernate-bench-{container}"]
        for key, value in _annotations(container, number).items():
            words += ["--annotation", f"{key}={value}"]
        try:
            containerd.ctr(*words, freezer.image().name, container, "/freezer", "-memory", str(size_mib))
            found = Peer(containerd, container, net.address, f"{container}-{time.time_ns()}")
            freezer.remember(found.address, found.text)
            found.await_dump()
            yield found
        finally:
            _remove(containerd, container)


def _remove(containerd: Containerd, container: str) -> None:
    for words in (
        ("tasks", "kill", "--signal", "SIGKILL", container),
        ("tasks", "delete", "--force", container),
        ("containers", "delete", container),
    ):
        with contextlib.suppress(ProgramError):
            containerd.ctr(*words)


def _annotations(container: str, number: int) -> dict[str, str]:
    cri, zeropod = "io.kubernetes.cri", "zeropod.ctrox.dev"
    return {
        f"{cri}.container-type": "container",
        f"{cri}.container-name": container,
        f"{cri}.sandbox-name": container,
        f"{cri}.sandbox-namespace": "bench",
        f"{cri}.sandbox-uid": _UID.format(number=number),
        f"{zeropod}/ports-map": f"{container}={freezer.PORT}",
        f"{zeropod}/container-names": container,
        f"{zeropod}/scaledown-duration": _IDLE,
    }


def _log_file(container: str, number: int) -> None:
    """zeropod writes a restored container's output into the newest file of this folder, and fails without one."""
    folder = Path("/var/log/pods", f"bench_{container}_{_UID.format(number=number)}", container)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0.log").touch()


def _runtime(root: Path) -> Path:
    """A launcher that gives zeropod's shim, and what it starts, its CRIU options."""
    folder = root / "zeropod"
    launcher = folder / "containerd-shim-zeropod-v2"
    if not launcher.exists():
        folder.mkdir()
        (folder / "criu.conf").write_text(_CRIU_CONFIG)
        shim = freezer.programs()["shim"]
        launcher.write_text(f'#!/bin/sh\nCRIU_CONFIG_FILE={folder}/criu.conf exec {shim} "$@"\n')
        launcher.chmod(0o755)
    return launcher
