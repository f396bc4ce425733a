"""Refuse what CRIU cannot bring back, before anything is frozen or dumped, from what /proc says.

CRIU finds most of it itself and undoes the dump (`kybernate.criu.log` then names the cause). Here are the cases where
it hangs, where it loses something without a word, or where it dumps what it cannot restore. One look at each process,
no more: what comes up after the look is CRIU's to find.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kybernate.criu.errors import (
    ExecSessionError,
    OtherUserError,
    OverlayInBindError,
    StoppedError,
    TerminalError,
    TracedError,
)
from kybernate.criu.mounts import mounts

_PROC = Path("/proc")
_TERMINALS = (4, 5, *range(136, 144))  # major numbers: consoles, /dev/tty and /dev/console, pseudo terminals


@dataclass(frozen=True)
class _Process:
    pid: int
    name: str
    state: str
    parent: int
    tracer: int
    users: frozenset[int]  # real, effective, saved
    groups: frozenset[int]


def refuse_unsuitable(
    container: str,
    pids: Iterable[int],
    *,
    init: int,
    destinations: Collection[str] = (),
    sys_resource: bool,
    allow_other_users: bool = False,
) -> None:
    """Raises the leaf of UnsuitableError that fits the first process or mount that CRIU could not bring back.

    `pids` are the processes of the container's cgroup without the keeper, `init` its first process, `destinations` the
    mount points in its config.json. `sys_resource`: CRIU has CAP_SYS_RESOURCE. `allow_other_users` lets processes that
    are not root's pass without it (where something stands in for the capability).
    """
    found = [process for pid in pids if (process := _look(pid)) is not None]
    for process in found:
        _refuse_process(container, process, sys_resource or allow_other_users)
    _refuse_strangers(container, found, init)
    _refuse_terminal(container, init)
    _refuse_overlays(container, init, destinations)


def refuse_exec_sessions(container: str, pids: Iterable[int], init: int) -> None:
    """Raises ExecSessionError where one of `pids` was brought into the container by exec."""
    _refuse_strangers(container, [process for pid in pids if (process := _look(pid)) is not None], init)


def _refuse_process(container: str, process: _Process, any_user: bool) -> None:
    who: dict[str, Any] = {"container": container, "pid": process.pid, "name": process.name}
    if process.state == "Z":
        return
    if process.tracer:
        raise TracedError(**who, tracer=process.tracer)
    if process.state in "Tt":
        raise StoppedError(**who)
    others = sorted((process.users | process.groups) - {0})
    if others and not any_user:  # the kernel's rule for prlimit(2): all six ids, or the capability
        raise OtherUserError(**who, uid=others[0])


def _refuse_strangers(container: str, found: list[_Process], init: int) -> None:
    """Whoever is no descendant of init came by exec: CRIU dumps the tree below init and leaves others behind."""
    parents = {process.pid: process.parent for process in found}
    for process in found:
        ancestor = process.pid
        while ancestor in parents and ancestor != init:
            ancestor = parents[ancestor]
        if ancestor != init and _look(process.pid) is not None:
            raise ExecSessionError(container=container, pid=process.pid, name=process.name)


def _refuse_terminal(container: str, init: int) -> None:
    for number in range(3):
        path = _PROC / str(init) / "fd" / str(number)
        try:
            found = os.stat(path)
            if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) in _TERMINALS:
                raise TerminalError(container=container, pid=init, name=f"descriptor {number}", path=os.readlink(path))
        except FileNotFoundError:
            continue


def _refuse_overlays(container: str, init: int, destinations: Collection[str]) -> None:
    """An overlay of the host that came along with a recursive bind. runc makes the mounts of config.json external, not
    those.

    CRIU dumps such an overlay as one of the container's own. At the restore it mounts another over the same upper
    folder: refused by the kernel (EBUSY), or else two that write to one folder and do not see each other.
    """
    ours = mounts(init)
    hosts = {mount.device for mount in mounts("self")} - {mount.device for mount in ours if mount.mountpoint == "/"}
    for mount in ours:
        if mount.kind == "overlay" and mount.device in hosts and mount.mountpoint not in destinations:
            raise OverlayInBindError(container=container, mountpoint=mount.mountpoint)


def _look(pid: int) -> _Process | None:
    """None for a process that has gone meanwhile."""
    try:
        text = (_PROC / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = dict(line.partition(":\t")[::2] for line in text.splitlines())
    return _Process(
        pid=pid,
        name=fields["Name"],
        state=fields["State"][0],
        parent=int(fields["PPid"]),
        tracer=int(fields["TracerPid"]),
        users=frozenset(map(int, fields["Uid"].split()[:3])),
        groups=frozenset(map(int, fields["Gid"].split()[:3])),
    )
