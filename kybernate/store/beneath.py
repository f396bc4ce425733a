"""Folders that others may write to while we work in them: opened from a root's descriptor, never through a link.

Source: openat2(2).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat

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


def empty(root: int) -> None:
    """Remove all that is in the folder `root`, through no link. Raises OSError."""
    for name in os.listdir(root):
        try:
            if stat.S_ISDIR(os.lstat(name, dir_fd=root).st_mode):
                shutil.rmtree(name, dir_fd=root)
            else:
                os.unlink(name, dir_fd=root)
        except FileNotFoundError:
            continue
