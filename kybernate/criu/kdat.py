"""CRIU's cache of what the kernel can do: /run/criu.kdat.

Without it each call of CRIU probes the kernel anew: 45 to 50 ms of each park and of each wake (measured on a container
of 4 MB: restore 128 ms, with the cache 79). CRIU keeps it by itself where /run is a tmpfs, as systemd mounts it, so
that it never outlives a boot. Two things can go wrong:

- A CRIU was killed between the creation of /run/criu.kdat.tmp (O_EXCL) and its rename: the file stays, and no CRIU
  writes the cache again until the next boot. `clear_stale` takes it away.
- /run is no tmpfs (containers, minimal systems): CRIU writes no cache, but it reads one. `prime` has one made in a
  private mount namespace with a tmpfs at /run, and binds that file, which lies in memory, over an empty
  /run/criu.kdat. After a boot only the empty file is left, which CRIU throws away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from kybernate.criu.errors import CacheError, ProgramDeadlineError, ProgramMissingError
from kybernate.criu.mounts import mounts

CACHE = Path("/run/criu.kdat")
_MEMORY = Path("/dev/shm")
_STALE_SECONDS = 60.0  # CRIU itself needs some milliseconds from the file's creation to its rename
_DEADLINE_SECONDS = 20.0
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18


def file_system(path: Path) -> str:
    """The kind of the file system that `path` is on, as mountinfo names it."""
    device = os.stat(path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    return next((mount.kind for mount in mounts("self") if mount.device == name), "unknown")


def is_kept() -> bool:
    """CRIU finds a cache, or will keep the next one that it makes."""
    return file_system(CACHE.parent) == "tmpfs" or (CACHE.is_file() and file_system(CACHE) == "tmpfs")


def is_stale() -> bool:
    """There is no cache, and a temporary file is left over that keeps CRIU from writing one."""
    if CACHE.is_file() and CACHE.stat().st_size:
        return False
    try:
        age_seconds = time.time() - CACHE.with_name("criu.kdat.tmp").stat().st_mtime
    except FileNotFoundError:
        return False
    return age_seconds > _STALE_SECONDS


def clear_stale() -> bool:
    """Remove what is left over; True if there was something. What a living CRIU has just made is left alone."""
    if not is_stale():
        return False
    CACHE.with_name("criu.kdat.tmp").unlink(missing_ok=True)
    return True


def prime(criu: str = "criu", deadline_seconds: float = _DEADLINE_SECONDS) -> bool:
    """Give CRIU a cache where it would keep none; False where it has one. Once after each start of the agent is enough.

    Raises CacheError, ProgramMissingError, ProgramDeadlineError: nothing is changed then, and nothing is slower than
    before.
    """
    if is_kept():
        return False
    command = [sys.executable, "-m", __name__, criu]
    try:
        made = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=deadline_seconds, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramDeadlineError(command=" ".join(command), deadline_seconds=deadline_seconds) from error
    if made.returncode != 0 or not made.stdout:
        raise CacheError(
            path=str(CACHE), problem=made.stderr.decode(errors="replace").strip()[-300:] or "nothing was made"
        )
    if file_system(_MEMORY) != "tmpfs":
        raise CacheError(path=str(CACHE), problem=f"{_MEMORY} is no tmpfs")
    _bind(made.stdout)
    return True


def unprime() -> None:
    """Take away what `prime` did. Idempotent."""
    if CACHE.is_file() and any(mount.mountpoint == str(CACHE) for mount in mounts("self")):
        _mount("umount", str(CACHE))
        CACHE.unlink(missing_ok=True)


def _bind(cache: bytes) -> None:
    source = _MEMORY / f"criu.kdat.{secrets.token_hex(8)}"
    for path, content in ((source, cache), (CACHE, b"")):
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
    try:
        _mount("mount", "--bind", str(source), str(CACHE))
    except BaseException:
        CACHE.unlink(missing_ok=True)
        raise
    finally:
        source.unlink(missing_ok=True)


def _mount(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False)
    except OSError as error:
        raise ProgramMissingError(program=command[0], problem=error.strerror) from error
    if done.returncode != 0:
        raise CacheError(path=str(CACHE), problem=done.stderr.strip())


def _make(criu: str) -> int:
    """In a process of its own: a cache, made by CRIU in a mount namespace of its own, to stdout."""
    libc = ctypes.CDLL(None, use_errno=True)
    private = libc.unshare(_CLONE_NEWNS) == 0
    private = private and libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) == 0
    if not private or libc.mount(b"tmpfs", str(CACHE.parent).encode(), b"tmpfs", ctypes.c_ulong(0), b"size=1m") != 0:
        sys.stderr.write(os.strerror(ctypes.get_errno()))
        return 1
    with contextlib.suppress(OSError):
        subprocess.run([criu, "check"], stdout=sys.stderr, timeout=_DEADLINE_SECONDS, check=False)
        sys.stdout.buffer.write(CACHE.read_bytes())
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(_make(sys.argv[1]))
