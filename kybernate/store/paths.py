"""Files and folders, opened step by step from a folder's descriptor and never through a link.

The store is root's alone (0700, 0600). A link or a foreign owner in it is refused, not followed: whoever can place one
could else have root read, or overwrite, what they like.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from kybernate.store.errors import UnsafePathError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # nonblocking: a FIFO must not hold us up
KEY_BYTES = 32


@contextlib.contextmanager
def folder(path: str | Path, *below: str, make: bool = False) -> Iterator[int]:
    """A descriptor of `path`/`below`..., for the length of a `with`. `make` creates what is missing, 0700.

    Raises FileNotFoundError; UnsafePathError for links, foreign owners and modes that let others in.
    """
    fd = _opened(str(path), None, make)
    try:
        for name in below:
            deeper = _opened(name, fd, make)
            os.close(fd)
            fd = deeper
        yield fd
    finally:
        os.close(fd)


def _opened(name: str, at: int | None, make: bool) -> int:
    if make:
        with contextlib.suppress(FileExistsError):
            if at is None:
                os.makedirs(name, 0o700)
            else:
                os.mkdir(name, 0o700, dir_fd=at)
                os.fsync(at)
    try:
        fd = os.open(name, _FOLDER, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UnsafePathError(path=name, problem="is a link or no folder") from error
        raise
    try:
        require_private(os.fstat(fd), name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def require_private(found: os.stat_result, path: str) -> None:
    """Raises UnsafePathError unless it is ours alone."""
    if found.st_uid != os.geteuid():
        raise UnsafePathError(path=path, problem=f"belongs to user {found.st_uid}, not to {os.geteuid()}")
    if found.st_mode & 0o022:
        raise UnsafePathError(path=path, problem=f"others can write to it (mode {stat.S_IMODE(found.st_mode):04o})")


def open_file(name: str, at: int) -> tuple[int, int]:
    """-> (descriptor, length) of a regular file. Raises FileNotFoundError, UnsafePathError."""
    try:
        fd = os.open(name, _FILE, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UnsafePathError(path=name, problem="is a link or a socket") from error
        raise
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise UnsafePathError(path=name, problem="is no regular file")
    return fd, found.st_size


def read_file(name: str, at: int, most: int = 64 << 20) -> bytes:
    """All bytes of a regular file. Raises as `open_file`, and OSError EFBIG above `most` bytes."""
    fd, size = open_file(name, at)
    with os.fdopen(fd, "rb") as file:
        if size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, at most {most} are taken", name)
        return file.read(most)


def write_file(name: str, at: int, content: bytes) -> None:
    """A new file with mode 0600, on the disk when this returns (its name is not: fsync the folder)."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)


def remove_tree(name: str, at: int) -> None:
    """Take away a folder (or whatever has its name) and all below it. What is gone already is no error."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=at)
        else:
            os.unlink(name, dir_fd=at)


def load_key(path: str | Path) -> bytes:
    """The node's key (32 bytes), made at random with mode 0600 where there is none.

    Raises UnsafePathError for a link, a foreign owner, a mode that lets others read it, a wrong length.
    """
    path = Path(path)
    with folder(path.parent, make=True) as at:
        with contextlib.suppress(FileNotFoundError):
            return _key(path, at)
        fresh = f"{path.name}.{secrets.token_hex(4)}"
        try:
            write_file(fresh, at, secrets.token_bytes(KEY_BYTES))
            with contextlib.suppress(FileExistsError):  # another was first: its key holds
                os.link(fresh, path.name, src_dir_fd=at, dst_dir_fd=at)
            os.fsync(at)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=at)
        return _key(path, at)


def _key(path: Path, at: int) -> bytes:
    fd, size = open_file(path.name, at)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        require_private(found, str(path))
        if found.st_mode & 0o077:
            problem = f"others can read it (mode {stat.S_IMODE(found.st_mode):04o}, 0600 expected)"
            raise UnsafePathError(path=str(path), problem=problem)
        if size != KEY_BYTES:
            raise UnsafePathError(path=str(path), problem=f"has {size} bytes, a key has {KEY_BYTES}")
        return file.read()
