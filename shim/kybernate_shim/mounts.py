"""Mounts that a killed CRIU or runc leaves: the yard of cgroups in the work folder, the bind of the rootfs."""

from __future__ import annotations

import os

UNMOUNT = ("/usr/bin/umount", "/bin/umount")


def below(folders: list[str], mountinfo: str) -> list[str]:
    """The mount points inside `folders`, the innermost first. Pure."""
    points = [line.split()[4] for line in mountinfo.splitlines()]
    return [point for point in reversed(points) if any(point.startswith(folder + "/") for folder in folders)]


def unmount_below(folders: list[str]) -> None:
    """Detach them, lazily: that never blocks. The standard library has no umount, so the system's program does it."""
    with open("/proc/self/mountinfo") as file:
        points = below(folders, file.read())
    program = next((path for path in UNMOUNT if os.path.exists(path)), UNMOUNT[0])
    for point in points:
        os.waitpid(os.posix_spawn(program, [program, "-l", point], {}), 0)
