"""Versions of our files on a node, and which is the present one.

    PREFIX/versions/0.1.0-1c2d.../   one version, never changed once it is whole
    PREFIX/current                   -> versions/0.1.0-1c2d...
    PREFIX/previous                  -> the one before
    PREFIX/bin, PREFIX/lib           -> current/bin, current/lib: paths that others may write down
    PREFIX/next-runtime              -> what the launcher calls in the end, for whoever wants to ask it something
    PREFIX/lock                      whoever changes something here holds it

A version is written under another name and renamed, links are made under another name and renamed: whoever looks sees
the old or the new. Killed at any moment this leaves at most a folder `.making-*`, which the next one removes.
Programs that run go on with the version they were started with, so a version stays while a process runs its loader.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kybernate.errors import DeadlineError, RefusedError

_LOCK_SECONDS = 300.0


class NotOursError(RefusedError):
    """{path} is not what this installer makes there. Take away what is installed there, or choose another --prefix."""


class BusyError(DeadlineError):
    """Another installer has held {lock} for {seconds:g} s. Look what it waits for."""


class Versions:
    """The versions below one prefix."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.folder = prefix / "versions"
        self.current = prefix / "current"
        self.previous = prefix / "previous"

    @contextlib.contextmanager
    def alone(self, seconds: float = _LOCK_SECONDS) -> Iterator[int]:
        """Hold the lock; the descriptor can be handed to a program that goes on. Raises BusyError, OSError."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle = os.open(self.prefix / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            limit = time.monotonic() + seconds
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > limit:
                        raise BusyError(lock=self.prefix / "lock", seconds=seconds) from None
                    time.sleep(0.1)
            yield handle
        finally:
            os.close(handle)

    def add(self, name: str, fill: Callable[[Path, Path], None]) -> Path:
        """The folder of this version; where it is missing `fill(folder, its later path)` writes it. Raises OSError."""
        for left in self.folder.glob(".making-*"):
            shutil.rmtree(left)
        target = self.folder / name
        if not target.is_dir():
            making = Path(tempfile.mkdtemp(dir=self.folder, prefix=".making-"))
            fill(making, target)
            making.chmod(0o755)
            _to_disk(making)
            making.rename(target)
        return target

    def switch(self, version: Path, runtime: Path) -> None:
        """Make it the present one, with this next runtime. Raises NotOursError, OSError."""
        for name in ("bin", "lib"):
            path = self.prefix / name
            if path.exists() and not path.is_symlink():
                raise NotOursError(path=path)
        relative = f"versions/{version.name}"
        now = os.readlink(self.current) if self.current.is_symlink() else ""
        if now and now != relative:
            _link(self.previous, now)
        _link(self.prefix / "next-runtime", str(runtime))
        if now != relative:
            _link(self.current, relative)
        for name in ("bin", "lib"):
            if not (self.prefix / name).is_symlink():
                _link(self.prefix / name, f"current/{name}")

    def forget_old(self) -> list[str]:
        """Remove what is neither the present version, nor the one before, nor run by a process. Returns their names."""
        wanted = {os.path.basename(os.readlink(link)) for link in (self.current, self.previous) if link.is_symlink()}
        unused = [path for path in self.folder.iterdir() if path.name not in wanted | self.running()]
        for path in unused:
            shutil.rmtree(path)
        return sorted(path.name for path in unused)

    def running(self) -> set[str]:
        """The versions that processes of this machine run."""
        found = set()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                program = Path(os.readlink(f"/proc/{pid}/exe"))
                if program.is_relative_to(self.folder):
                    found.add(program.relative_to(self.folder).parts[0])
        return found

    def remove(self) -> None:
        """Everything below the prefix, and the prefix if nothing else is in it. The links go first."""
        for link in ("bin", "lib", "current", "previous", "next-runtime"):
            if (self.prefix / link).is_symlink():
                (self.prefix / link).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.prefix / "lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.prefix.rmdir()


def _link(path: Path, target: str) -> None:
    fresh = path.with_name(f".{path.name}-new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, path)


def _to_disk(folder: Path) -> None:
    """A rename must not reach the disk before what it names: after a power cut the version would be there and empty."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
    finally:
        os.close(handle)
