"""What a containerd leaves on a machine, found by its folders, and taken away.

Everything that a private containerd makes names one of its two folders: containerd and its shims in their command
lines, the processes of containers by the upper folder of their root file system, mounts (network namespaces too) by
their place, cgroups by the bundles' config.json. So remains are found without a list that a crash could have cut short.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from kybernate.lab.process import CGROUP_ROOT, argv_of, cgroups_of, descendants, end, hierarchies, pids

_MNT_DETACH = 2
# Of the agent's pods, and of keepers. They stay while others use them.
_OUR_CGROUPS = ("kybernate-pods", "kybernate")


def remove(root: Path, state: Path) -> None:
    """End each process, mount and cgroup of the containerd with these folders, then the folders. Safe to repeat."""
    bundles = _bundles(state)
    cgroups = {path for bundle in bundles for path in _cgroups_of_bundle(bundle)}
    sockets = {path for bundle in bundles for path in _shim_socket(bundle)}
    inside = contained(root)
    cgroups |= {path for pid in inside for path in cgroups_of(pid)}
    end(lambda: descendants(_daemons(root, state) | _inits(bundles)) | contained(root))
    for path in sockets:
        path.unlink(missing_ok=True)
    unmount_below(state)
    unmount_below(root)
    for path in (*cgroups, *(root / name for root in hierarchies() for name in _OUR_CGROUPS)):
        _remove_cgroup(path)
    for folder in (state, root):
        shutil.rmtree(folder, ignore_errors=True)


def unmount_below(folder: Path) -> None:
    """Detach every mount at or below `folder` in this mount namespace, the newest first."""
    libc = ctypes.CDLL(None, use_errno=True)
    for point in reversed(_mount_points()):
        if point == folder or point.is_relative_to(folder):
            libc.umount2(os.fsencode(point), _MNT_DETACH)


def _mount_points() -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]


def _bundles(state: Path) -> list[Path]:
    return list(state.glob("io.containerd.runtime.v2.task/*/*"))


def _daemons(root: Path, state: Path) -> set[int]:
    """containerd, its shims, and calls of the OCI runtime that are under way."""
    words = {str(root / "config.toml"), str(state / "containerd.sock")}
    runtime_roots = str(state / "runc") + "/"
    return {pid for pid in pids() if any(word in words or word.startswith(runtime_roots) for word in argv_of(pid)[1:])}


def _inits(bundles: Iterable[Path]) -> set[int]:
    """What the shims believe to be the containers' init processes; for managed containers these are keepers."""
    found = set()
    for bundle in bundles:
        with contextlib.suppress(OSError, ValueError):
            pid = int((bundle / "init.pid").read_text())
            # A pid from a file may have been given to another process since: it must still know the bundle.
            if _knows(pid, bundle):
                found.add(pid)
    return found


def _knows(pid: int, bundle: Path) -> bool:
    return bundle.name in Path(f"/proc/{pid}/cgroup").read_text() or bundle.name in "\0".join(argv_of(pid))


def contained(root: Path) -> set[int]:
    """Processes whose root file system is an overlay that writes below `root`."""
    word = f"upperdir={root}/"
    found = set()
    for pid in pids():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="replace").splitlines():
                if line.split()[4] == "/" and word in line:
                    found.add(pid)
    return found


def _cgroups_of_bundle(bundle: Path) -> list[Path]:
    with contextlib.suppress(OSError, ValueError, KeyError):
        path = json.loads((bundle / "config.json").read_bytes())["linux"]["cgroupsPath"]
        if ":" not in path:
            return [root / path.lstrip("/") for root in hierarchies()]
    return []


def _shim_socket(bundle: Path) -> list[Path]:
    """The shim's socket lies below /run/containerd, whatever containerd's own folders are; a killed shim leaves it."""
    with contextlib.suppress(OSError):
        return [Path((bundle / "address").read_text().removeprefix("unix://"))]
    return []


def _remove_cgroup(path: Path) -> None:
    """Remove a cgroup and those above it for as long as they are empty."""
    while path.parent.is_relative_to(CGROUP_ROOT) and path not in hierarchies():
        try:
            path.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        path = path.parent
