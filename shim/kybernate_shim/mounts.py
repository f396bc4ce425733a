"""Mounts that a killed CRIU or runc leaves: the yard of cgroups in the work folder, the bind of the rootfs, and the
yard in which CRIU puts a container's mounts together, a folder of its own naming in the node's /tmp."""

from __future__ import annotations

import os

UNMOUNT = ("/usr/bin/umount", "/bin/umount")
YARD = "/tmp/.criu.mntns."


def below(folders: list[str], mountinfo: str) -> list[str]:
    """The mount points inside `folders`, the innermost first. Pure."""
    return [point for point in _points(mountinfo) if any(point.startswith(folder + "/") for folder in folders)]


def yards(mountinfo: str) -> list[str]:
    """The mount points of all yards, anybody's, the innermost first. Pure."""
    return [point for point in _points(mountinfo) if point.startswith(YARD)]


def unmount_below(folders: list[str]) -> None:
    """Detach them, lazily: that never blocks."""
    for point in below(folders, _mountinfo()):
        _unmount(point)


def sweep_yards() -> None:
    """Detach the yards that nobody uses. Nothing tells whose one is, so it is done when no CRIU runs on the node, or
    the next time. A CRIU that begins meanwhile makes a new yard. The empty folder stays: to remove it would also detach
    what is mounted there in other mount namespaces."""
    left = yards(_mountinfo())
    if not left or _criu_runs():
        return
    for point in left:
        _unmount(point)


def _criu_runs() -> bool:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                program = os.readlink(f"/proc/{name}/exe")
            except OSError:  # gone, ended and not reaped yet, or the kernel's own
                continue
            if os.path.basename(program.removesuffix(" (deleted)")) == "criu":
                return True
    return False


def _mountinfo() -> str:
    with open("/proc/self/mountinfo") as file:
        return file.read()


def _points(mountinfo: str) -> list[str]:
    return [line.split()[4] for line in reversed(mountinfo.splitlines())]


def _unmount(point: str) -> None:
    """The standard library has no umount, so the system's program does it."""
    program = next((path for path in UNMOUNT if os.path.exists(path)), UNMOUNT[0])
    os.waitpid(os.posix_spawn(program, [program, "-l", point], {}), 0)
