"""Folders that others may write to while we work in them: opened from a root's descriptor, never through a link.

Source: openat2(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
GONE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)  # a folder that another container has removed or exchanged
_OPENAT2 = 437  # the same number on every architecture
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_INSIDE = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def beneath(root: int, path: str, flags: int) -> int:
    """A descriptor of `path` below the folder `root`; no link is followed and no mount crossed. Raises OSError."""
    how = _How(flags | os.O_CLOEXEC, 0, _INSIDE)
    name = os.fsencode(path or ".")
    fd = _libc.syscall(_OPENAT2, root, name, ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(fd)


def listed(root: int, path: str) -> Iterator[tuple[str, os.stat_result]]:
    """All that lies in the folder `path`, by its path from the root; nothing where somebody has removed or exchanged
    that (but for the root itself). Raises OSError."""
    try:
        folder = beneath(root, path, FOLDER)
    except OSError as error:
        if path and error.errno in GONE:
            return
        raise
    try:
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                yield f"{path}/{name}".lstrip("/"), os.lstat(name, dir_fd=folder)
    finally:
        os.close(folder)


def empty(root: int) -> None:
    """Remove all that is in the folder `root`, through no link and across no mount: what another container of the pod
    has mounted there (a bucket) is not the pod's. Raises OSError: EXDEV, with nothing removed, where there is a mount.
    """
    folders = [""]
    for path in folders:  # grows meanwhile: a folder comes before those in it
        for inner, found in listed(root, path):
            with contextlib.suppress(FileNotFoundError):
                os.close(beneath(root, inner, os.O_PATH | os.O_NOFOLLOW))
            if stat.S_ISDIR(found.st_mode):
                folders.append(inner)
    for path in reversed(folders):
        with contextlib.suppress(FileNotFoundError):
            _clear(root, path)


def _clear(root: int, path: str) -> None:
    """What its folders held is gone by now. What somebody has mounted meanwhile is not entered, and is busy."""
    folder = beneath(root, path, FOLDER)
    try:
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                is_folder = stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode)
                (os.rmdir if is_folder else os.unlink)(name, dir_fd=folder)
    finally:
        os.close(folder)
