"""Tmpfs mounts that hold no data, only folders, links and devices: a container's /dev, on cgroup v1 /sys/fs/cgroup.

CRIU packs each tmpfs with tar and gzip and unpacks it at a restore: two or three processes, 6 ms each way. These hold
nothing but a few entries, so they are written down in one small file beside the images and made anew:

    before the dump   `skeletons` finds them; `options.dump_conf` names them as external, so CRIU leaves them out
    in post-dump      `unchanged` (nothing runs now), `save`: before the commit, so the manifest seals that file too
    the restore       `Stand` mounts each on the host and fills it; `options.restore_conf` tells CRIU to bind it

A mount that lies on one of them hides what is below it; from inside nobody can look there without CAP_SYS_ADMIN, so
an empty folder or file stands in for it, and containers with that capability are left to CRIU. So is every tmpfs with
a regular file, a FIFO or a socket. Empty ones are the affair of `mounts`.

Sources: mount(2), mknod(2), proc(5); criu(8), --external.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from kybernate.criu.errors import ImageFormatError
from kybernate.criu.mounts import Mount, can_be_named, mounts

FILE = "kybernate-skeletons.json"
_MOST_ENTRIES = 256
_CAP_SYS_ADMIN = 1 << 21
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_KINDS = (stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK)
_OPTIONS = {"rw", "size", "nr_inodes", "nr_blocks", "mode", "uid", "gid", "inode32", "inode64"}
_libc = ctypes.CDLL(None, use_errno=True)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """`path` below the mount point ("" is its root), `mode` with the file's type; `target` of a link."""

    path: str
    mode: int
    uid: int = 0
    gid: int = 0
    device: int = 0
    target: str = ""
    changed_ns: int = 0


class Skeleton(msgspec.Struct, frozen=True):
    """One mount: where, with which options of tmpfs, and its entries, folders before what is in them."""

    mountpoint: str
    options: str
    entries: tuple[Entry, ...]

    @property
    def key(self) -> str:
        """Its name between dump and restore in CRIU's options."""
        return "kybernate-skeleton" + self.mountpoint.replace("/", "-")


def skeletons(pid: int) -> list[Skeleton]:
    """Those of the container of `pid` (its init). Ask when nothing in it runs. Raises OSError."""
    if _capabilities(pid) & _CAP_SYS_ADMIN:
        return []
    ours, foreign = mounts(pid), {mount.device for mount in mounts("self")}
    found = []
    for mount in ours:
        others = [other for other in ours if other is not mount]
        alone = all(other.device != mount.device and other.mountpoint != mount.mountpoint for other in others)
        plain = mount.kind == "tmpfs" and mount.root == "/" and mount.device not in foreign
        if plain and alone and can_be_named(mount.mountpoint) and _can_be_made(mount.options):
            covered = {other.mountpoint for other in others if other.parent_id == mount.mount_id}
            entries = _entries(pid, mount, covered)
            if entries is not None and len(entries) > 1:
                found.append(Skeleton(mount.mountpoint, mount.options.removeprefix("rw").lstrip(","), entries))
    return found


def unchanged(pid: int, known: Sequence[Skeleton]) -> bool:
    """True when all of them are still what was found."""
    return not known or {one.key: one for one in known}.items() <= {one.key: one for one in skeletons(pid)}.items()


def save(images: Path, known: Sequence[Skeleton]) -> None:
    """Write them beside the images; nothing where there are none. Raises OSError."""
    if known:
        fd = os.open(images / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(list(known)))


def load(images: Path) -> list[Skeleton]:
    """What `save` wrote; to be asked of verified images. Raises ImageFormatError, OSError."""
    try:
        return msgspec.json.decode((images / FILE).read_bytes(), type=list[Skeleton])
    except FileNotFoundError:
        return []
    except msgspec.MsgspecError as error:
        raise ImageFormatError(path=str(images / FILE), problem=str(error)) from error


class Stand:
    """The mounts of one restore on the host, in a folder of their own; taken away when CRIU has bound them.

    `make` and `clear` are for a thread. What a stand that was never cleared left behind goes with the next `clear` of
    the same folder: unmounted, never emptied, for a container may live on it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, known: Sequence[Skeleton]) -> dict[str, str]:
        """Mount and fill them; {key: path} for CRIU. Raises OSError, and then nothing is left."""
        self.clear()
        places = {}
        try:
            for number, one in enumerate(known):
                place = self.folder / str(number)
                place.mkdir(mode=0o700, parents=True)
                _mount_tmpfs(place, one.options)
                _fill(place, one.entries)
                places[one.key] = str(place)
        except BaseException:
            self.clear()
            raise
        return places

    def clear(self) -> None:
        """Unmount and remove. Idempotent. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            for place in list(self.folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    while os.path.ismount(place):
                        _unmount(place)
                    place.rmdir()
            self.folder.rmdir()


def _can_be_made(options: str) -> bool:
    """Whether mount(2) takes what mountinfo says; others, as those of SELinux, are shown in a form of their own."""
    return {word.partition("=")[0] for word in options.split(",")} <= _OPTIONS and options.startswith("rw")


def _capabilities(pid: int) -> int:
    """The bounding set: what no process of the container can get beyond."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return int(line.split()[1], 16)
    return _CAP_SYS_ADMIN


def _entries(pid: int, mount: Mount, covered: set[str]) -> tuple[Entry, ...] | None:
    """None where it holds what cannot be written down."""
    root = f"/proc/{pid}/root" + mount.mountpoint
    found: list[Entry] = []
    try:
        for path in _walk(root, mount.mountpoint, covered):
            entry = _entry(root + path, path, mount.mountpoint + path in covered)
            if entry is None or len(found) == _MOST_ENTRIES:
                return None
            found.append(entry)
    except OSError:
        return None
    return tuple(found)


def _walk(root: str, mountpoint: str, covered: set[str]) -> Iterator[str]:
    """Paths below `root`, itself first as ""; not into other mounts."""
    waiting = [""]
    while waiting:
        path = waiting.pop()
        yield path
        if mountpoint + path not in covered and stat.S_ISDIR(os.lstat(root + path).st_mode):
            waiting += sorted((f"{path}/{name}" for name in os.listdir(root + path)), reverse=True)


def _entry(place: str, path: str, is_covered: bool) -> Entry | None:
    found = os.lstat(place)
    if is_covered:
        return Entry(path, stat.S_IFDIR | 0o755 if stat.S_ISDIR(found.st_mode) else stat.S_IFREG | 0o644)
    if stat.S_IFMT(found.st_mode) not in _KINDS or os.listxattr(place, follow_symlinks=False):
        return None
    target = os.readlink(place) if stat.S_ISLNK(found.st_mode) else ""
    return Entry(path, found.st_mode, found.st_uid, found.st_gid, found.st_rdev, target, found.st_mtime_ns)


def _fill(place: Path, entries: Sequence[Entry]) -> None:
    """Make the entries in a fresh tmpfs that nobody else sees. Times last: making an entry changes its folder's."""
    for entry in entries:
        path = f"{place}{entry.path}"
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFLNK:
            os.symlink(entry.target, path)
        elif kind == stat.S_IFDIR:
            if entry.path:
                os.mkdir(path)
        else:
            os.mknod(path, entry.mode, entry.device)
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(path, stat.S_IMODE(entry.mode))
    for entry in reversed(entries):
        if entry.changed_ns:
            times = (entry.changed_ns, entry.changed_ns)
            os.utime(f"{place}{entry.path}", ns=times, follow_symlinks=False)


def _mount_tmpfs(place: Path, options: str) -> None:
    _checked(_libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", ctypes.c_ulong(0), options.encode()), place)


def _unmount(place: Path) -> None:
    _checked(_libc.umount2(os.fsencode(place), _MNT_DETACH | _UMOUNT_NOFOLLOW), place)


def _checked(result: int, place: Path) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(place))
