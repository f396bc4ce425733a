"""Tmpfs mounts of a container that are known to be empty come back as fresh tmpfs.

CRIU packs each tmpfs mount with tar and gzip at a dump, and unpacks it at a restore: two processes a mount, about 4 ms
each. A container has several that hold nothing (/proc/acpi, /proc/scsi, /sys/firmware: runc's masks; often /dev/shm).
Three steps:

    before the dump   `empty_tmpfs` finds them, by /proc/<pid>; `options.dump_conf` names them as external
    in post-dump      `still_empty` (nothing runs now); `drop_empty_tmpfs` rewrites the mountpoints image, a plain
                      mount of type tmpfs for each; before the commit, so the hashes are of the new file
    the restore       needs no option: CRIU mounts it as the image says

A deleted but open file on such a mount (a POSIX shared memory without a name) is a ghost file of CRIU's and not
concerned. A tmpfs that holds no data but is not empty, as /dev: see `skeleton`. A mount that the host also sees (a
pod's /dev/shm) is a bind mount, runc's affair.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kybernate.criu import images
from kybernate.criu._pb import criu_images_pb2 as pb
from kybernate.criu.options import EMPTY_TMPFS

_TMPFS_MODE = 0o1777  # a tmpfs has it unless its options say otherwise
_PROC = Path("/proc")


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo (proc(5)). `device` is major:minor; `root` is what of the file system is mounted."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    kind: str
    options: str


def mounts(pid: int | str) -> list[Mount]:
    """The mounts that a process sees, in the order they were made. Raises OSError."""
    return [_parsed(line) for line in (_PROC / str(pid) / "mountinfo").read_text().splitlines()]


def _parsed(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    mount_id, parent_id, device, root, mountpoint = before.split(" ")[:5]
    kind, _, options = after.split(" ")[:3]
    return Mount(int(mount_id), int(parent_id), device, _plain(root), _plain(mountpoint), kind, options)


def _plain(escaped: str) -> str:
    """mountinfo writes blank, tab, newline and backslash as \\nnn."""
    for code in ("040", "011", "012", "134"):
        escaped = escaped.replace(f"\\{code}", chr(int(code, 8)))
    return escaped


def empty_tmpfs(pid: int) -> list[str]:
    """Mount points of the container of `pid` (its init) that may be dumped as empty tmpfs.

    Ask when nothing in the container runs (frozen), or ask `still_empty` then: a file made in between would be lost.
    """
    ours = mounts(pid)
    foreign = {mount.device for mount in mounts("self")}
    parents = {mount.parent_id for mount in ours}
    found = []
    for mount in ours:
        others = [other for other in ours if other is not mount]
        alone = all(other.device != mount.device and other.mountpoint != mount.mountpoint for other in others)
        whole = mount.kind == "tmpfs" and mount.root == "/" and mount.device not in foreign
        if (
            whole
            and alone
            and mount.mount_id not in parents
            and can_be_named(mount.mountpoint)
            and _is_fresh(pid, mount)
        ):
            found.append(mount.mountpoint)
    return found


def still_empty(pid: int, mountpoints: Sequence[str]) -> bool:
    """True when all of them are mounts without a file, as `empty_tmpfs` found them."""
    return set(mountpoints) <= set(empty_tmpfs(pid))


def can_be_named(mountpoint: str) -> bool:
    """In CRIU's configuration file."""
    return not any(sign.isspace() or sign in "#\"'[]\\" for sign in mountpoint)


def _is_fresh(pid: int, mount: Mount) -> bool:
    """No file in it, and owner and mode as its options say: a mount made with these options is the same."""
    path = _PROC / str(pid) / "root" / mount.mountpoint.lstrip("/")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        options = dict(option.partition("=")[::2] for option in mount.options.split(","))
        found = os.fstat(fd)
        as_mounted = (
            int(options.get("mode", oct(_TMPFS_MODE)[2:]), 8),
            int(options.get("uid", 0)),
            int(options.get("gid", 0)),
        )
        same = (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == as_mounted
        device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
        return same and device == mount.device and not os.listdir(fd)
    finally:
        os.close(fd)


def drop_empty_tmpfs(folder: Path) -> list[str]:
    """Make the mounts that were dumped with the cookie plain tmpfs mounts; returns their mount points. Idempotent.

    Raises ImageFormatError, OSError. Nothing is written where nothing is to be changed.
    """
    dropped = []
    for path in sorted(folder.glob("mountpoints-*.img")):
        entries = images.load(path, images.MOUNTPOINTS, pb.Mount)
        ours = [entry for entry in entries if entry.ext_key == EMPTY_TMPFS]
        for entry in ours:
            entry.ClearField("ext_key")
            entry.fstype = pb.Mount.AUTO  # of type TMPFS CRIU would look for the tar file
            entry.fsname = "tmpfs"
            dropped.append(entry.mountpoint)
        if ours:
            images.save(path, images.MOUNTPOINTS, entries)
    return dropped
