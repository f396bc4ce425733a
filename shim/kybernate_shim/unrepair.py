"""Give TCP connections back to their application after a dump that did not end by itself.

CRIU puts every connection into repair mode while it reads it, and takes it out again when it is done or gives up. A
CRIU that was killed cannot: the socket then neither sends nor acknowledges, for ever. This program takes a copy of
each socket of the given processes (pidfd_getfd, Linux 5.6) and ends its repair mode. A program of its own because the
keeper has no room for ctypes.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys

PIDFD_GETFD = 438  # the same number on every architecture
TCP_REPAIR = 19


def sockets_of(pid: int) -> dict[str, int]:
    """{inode: descriptor} of a process's sockets."""
    found = {}
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found[target] = int(name)
    return found


def end_repair(pidfd: int, number: int) -> bool:
    """Take one socket out of repair mode. False when it was not in it, or is no TCP socket."""
    copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, number, 0)
    if copy < 0:
        return False
    with socket.socket(fileno=copy) as link:
        try:
            if not link.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
                return False
        except OSError:
            return False
        link.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
        return True


def main(pids: list[str]) -> int:
    seen: set[str] = set()
    ended = 0
    for pid in map(int, pids):
        try:
            pidfd = os.pidfd_open(pid)
            sockets = sockets_of(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        for inode in sockets.keys() - seen:
            ended += end_repair(pidfd, sockets[inode])
        seen |= sockets.keys()
        os.close(pidfd)
    print(f"{ended} connections taken out of repair mode", file=sys.stderr)
    return 0
