"""Facts about the processes of one container, read from its cgroup and /proc."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from kybernate_agent.keepers import process_start

PAGE = 4096


def cgroup_folder(cgroups: Mapping[str, str]) -> Path | None:
    """The folder whose `cgroup.procs` lists the container's processes: the freezer's on v1, the only one on v2."""
    for controller in ("freezer", ""):
        if controller in cgroups:
            return Path(cgroups[controller])
    return None


def pids_of(cgroups: Mapping[str, str]) -> list[int]:
    """Every process in the container's cgroup and below it; empty where the cgroup is gone."""
    folder = cgroup_folder(cgroups)
    if folder is None:
        return []
    found: list[int] = []
    try:
        for procs in [folder / "cgroup.procs", *folder.glob("**/*/cgroup.procs")]:
            found.extend(int(line) for line in procs.read_text().split())
    except OSError:
        return found
    return sorted(set(found))


def hurry_cgroup_moves() -> None:
    """Move this process to where it is: the kernel's first move of a process between cgroups waits for a grace period
    (8 to 18 ms), those soon after it do not. A restore has to move CRIU; the wait can be over by then.

    Source: kernel/cgroup/cgroup.c, cgroup_procs_write_start; percpu-rwsem.h.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            for hierarchy in ("", "unified", names):
                file = Path("/sys/fs/cgroup", hierarchy, path.lstrip("/"), "cgroup.procs")
                if file.exists():
                    file.write_text("0")
                    return


def resident_bytes(pids: list[int]) -> int:
    """Sum of the resident sets; shared pages count once for each process, so it is an upper bound."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError):
            continue
    return total


def is_alive(pid: int, start: int) -> bool:
    """True while `pid` is the process that began at `start` clock ticks after boot."""
    return pid > 0 and start > 0 and process_start(pid) == start


def writable_layer(pid: int) -> str:
    """The overlay's upper folder of the root of `pid`, as the host sees it; empty where the root is no overlay."""
    return _upper(Path(f"/proc/{pid}/mountinfo"), "/")


def writable_layer_of_bundle(bundle: Path) -> str:
    """The same for a container whose root file system is mounted but which has no process yet."""
    return _upper(Path("/proc/self/mountinfo"), str((bundle / "rootfs").resolve()))


def _upper(mountinfo: Path, target: str) -> str:
    try:
        lines = mountinfo.read_text().splitlines()
    except OSError:
        return ""
    upper = ""
    for line in lines:  # the last one wins: it lies on top
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if left.split(" ")[4] == target and kind == "overlay":
            upper = next((o[9:] for o in options.split(",") if o.startswith("upperdir=")), "")
    return upper
