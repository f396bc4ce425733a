"""A node from nothing to one that runs pods of the RuntimeClass, and back.

    lay        the version's files, from the image or machine that this runs in
    activate   on the node itself: the launcher, the switch to this version, the handler

`install` is both: it lays, and then calls the installer that it has just laid, in the mount namespace of the node. That
one sees the node as it is: its paths, links, programs and services; and where its Python did not work, nothing that
matters has been changed yet. Everything may be repeated, and does nothing where nothing is to be done.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kybernate_shim import install as shim

import kybernate
from kybernate.errors import DeadlineError, ExternalError, RefusedError
from kybernate_installer import containerd, payload
from kybernate_installer.handler import Handler
from kybernate_installer.versions import Versions

_ACTIVATE_SECONDS = 600.0
_NAMES_THE_RUNTIME = ("runtime", "options.json")
"""In a bundle. Source: containerd, cmd/containerd-shim-runc-v2/runc/container.go (WriteRuntime, WriteOptions)."""


class ActivateError(ExternalError):
    """The installer on the node ended with exit code {code}; its words are above."""


class ActivateLateError(DeadlineError):
    """The installer on the node did not end within {seconds:g} s."""


class InUseError(RefusedError):
    """Containers of the handler `kybernate` exist on this node: {names}. Delete their pods first."""


def lay(prefix: Path) -> Path:
    """Put this version's files below the prefix. Raises the errors of `payload` and `versions`, OSError."""
    collected = payload.collect()
    name = f"{kybernate.__version__}-{collected.digest}"
    return Versions(prefix).add(name, lambda folder, at: payload.lay(collected, folder, at))


def install(prefix: Path, run_dir: Path, patience: float, enter: int) -> None:
    """Lay and activate. `enter` is a process whose mount namespace is the node's; 0: this one's is.

    Raises ActivateError, ActivateLateError, the errors of `lay`.
    """
    with Versions(prefix).alone() as lock:
        version = lay(prefix)
        into = ["nsenter", "--target", str(enter), "--mount", "--"] if enter else []
        words = ["activate", "--prefix", str(prefix), "--run-dir", str(run_dir), "--patience", str(patience)]
        try:
            done = subprocess.run(
                [*into, f"{version}/bin/kybernate-installer", *words, "--version", version.name, "--locked"],
                stdin=subprocess.DEVNULL, pass_fds=[lock], timeout=_ACTIVATE_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ActivateLateError(seconds=_ACTIVATE_SECONDS) from error
    if done.returncode:
        raise ActivateError(code=done.returncode)


def activate(prefix: Path, run_dir: Path, patience: float, name: str) -> list[str]:
    """On the node: make the version the present one and register the handler. Returns what was done, for people.

    The caller holds the lock. Raises the errors of `containerd`, `handler` and `versions`, ValueError, OSError.
    """
    versions = Versions(prefix)
    version = versions.folder / name
    handler = Handler(containerd.find(patience=patience), prefix, patience)
    runtime = handler.containerd.next_runtime(handler.dump())
    path = f"{version}/bin:{shim.DEFAULT_PATH}"
    shim.install(version, run_dir, runtime, path, payload.start(version))
    versions.switch(version, runtime)
    anew = handler.register(f"{prefix}/bin/kybernate-runc")
    said = [f"{versions.current} -> {name}, next runtime {runtime}"]
    said += [f"{handler.file}: " + ("handler registered, containerd started anew" if anew else "nothing to change")]
    return said + [f"removed {old}" for old in versions.forget_old()]


def uninstall(prefix: Path, run_dir: Path, patience: float) -> list[str]:
    """On the node: take the handler out of containerd, then the files away. Returns what was done, for people.

    Raises InUseError, and the errors of `activate`.
    """
    versions = Versions(prefix)
    with versions.alone():
        handler = Handler(containerd.find(patience=patience), prefix, patience)
        state = Path(str(handler.dump().get("state") or "/run/containerd"))
        launcher = f"{prefix}/bin/kybernate-runc"
        _refuse_in_use(run_dir, state, launcher)
        anew = handler.unregister()
        _refuse_in_use(run_dir, state, launcher)  # nobody can make another one from here on
        said = [f"{handler.file}: " + ("handler taken out, containerd started anew" if anew else "nothing to change")]
        for folder in (run_dir / "keepers", run_dir / "pids"):
            if folder.is_dir() and not os.listdir(folder):
                folder.rmdir()
        versions.remove()
    return [*said, f"removed {prefix}"]


def _refuse_in_use(run_dir: Path, state: Path, launcher: str) -> None:
    """containerd calls our launcher for every container and sandbox of the handler until it is deleted."""
    keepers = run_dir / "keepers"
    names = set(os.listdir(keepers)) if keepers.is_dir() else set()
    for written in state.glob("io.containerd.runtime.v2.task/*/*/*"):
        if written.name in _NAMES_THE_RUNTIME and launcher.encode() in written.read_bytes():
            names.add(written.parent.name)
    if names:
        raise InUseError(names=", ".join(sorted(names)))
