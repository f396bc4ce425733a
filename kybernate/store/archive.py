"""A tree of files as one tar file, and back: what of a container's state lies in file systems.

`pack` reads a folder, `unpack` fills one. Kept is all that an overlay's upper folder can hold: owners, modes, times to
the nanosecond, hard links, device nodes (an overlay's whiteout is the character device 0:0), FIFOs, holes, extended
attributes (file capabilities, ACLs, `trusted.overlay.opaque`, `.redirect`). Left out are sockets (CRIU binds those that
are in use anew) and attributes that mean something on the old disk only (`_OF_THE_DISK`).

Neither GNU tar nor `tarfile.extractall`: a tenant may write to an emptyDir from another container of the pod while we
do, so no step may follow a link that somebody plants. Every folder is opened from the root's descriptor with openat2,
beneath it and through no link, and every entry is changed through a descriptor of its own. The format is tar with pax
headers, which GNU tar reads too (but for holes, which are recorded in a way of ours).

Both block, stream, and stop with DeadlineError at `until` (time.monotonic). Source: openat2(2), pax(1), overlayfs in
the kernel's documentation.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kybernate.errors import DeadlineError
from kybernate.store.beneath import FOLDER, GONE, beneath, empty, listed
from kybernate.store.errors import ArchiveFailedError, ArchiveUnsafeError

_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_STEP = 8 << 20
_MOST_LINKED = 200_000  # they are remembered, and a tenant can make millions
_XATTR, _HOLES, _LENGTH = "SCHILY.xattr.", "KYBERNATE.data", "KYBERNATE.length"
# They name inodes of the lower folders, or are a security module's own to give.
_OF_THE_DISK = {f"trusted.overlay.{name}" for name in ("origin", "impure", "nlink", "uuid", "upper")}
_OF_THE_DISK |= {"security.selinux", "security.ima", "security.evm"}
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


# -- in


def pack(folder: Path, archive: Path, until: float, *, shared: bool = False) -> int:
    """Write all that is in `folder` to the new file `archive` (mode 0600); returns its length.

    Raises ArchiveFailedError (the disk, a foreign mount, something that goes while we read), DeadlineError; nothing is
    left then. `shared`: others than the container write to it, so what goes is left out, what gets shorter is filled
    with zeros. Whether a shared folder is being taken away for good (its content first) is for the caller to know.
    """
    try:
        root = os.open(folder, FOLDER)
        try:
            out = os.open(archive, _NEW, 0o600)
            try:
                _Packing(root, out, until, shared).run()
                if not os.path.samestat(os.lstat(folder), os.fstat(root)):
                    raise OSError(errno.ESTALE, "it was exchanged while it was packed")
                return os.fstat(out).st_size
            except BaseException:
                os.unlink(archive)
                raise
            finally:
                os.close(out)
        finally:
            os.close(root)
    except OSError as error:
        raise ArchiveFailedError(path=str(folder), problem=f"cannot be packed: {error}") from error


@dataclass
class _Packing:
    root: int
    out: int
    until: float
    shared: bool
    seen: dict[tuple[int, int], str] = field(default_factory=dict)  # files with several names, by inode

    def run(self) -> None:
        waiting = [""]
        while waiting:
            path = waiting.pop()
            try:
                folder = beneath(self.root, path, FOLDER)
            except OSError as error:
                if self.shared and path and error.errno in GONE:
                    continue
                raise
            try:
                if not path:
                    self._add(folder, ".")
                for name in sorted(os.listdir(folder), reverse=True):
                    _in_time(self.until, path)
                    if self._named(folder, name, f"{path}/{name}".lstrip("/")):
                        waiting.append(f"{path}/{name}".lstrip("/"))
            finally:
                os.close(folder)
        os.write(self.out, bytes(2 * tarfile.BLOCKSIZE))

    def _named(self, folder: int, name: str, path: str) -> bool:
        """Add one entry; whether it is a folder, whose entries come later."""
        try:
            entry = os.open(name, _ENTRY, dir_fd=folder)
        except FileNotFoundError:
            if self.shared:
                return False
            raise
        try:
            return self._add(entry, path)
        finally:
            os.close(entry)

    def _add(self, entry: int, path: str) -> bool:
        found = os.fstat(entry)
        info = tarfile.TarInfo(path)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:
            return False
        info.type = kind
        info.mode, info.uid, info.gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
        info.mtime = found.st_mtime_ns // 10**9
        info.devmajor, info.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
        more = {"mtime": f"{found.st_mtime_ns // 10**9}.{found.st_mtime_ns % 10**9:09d}"}
        info.pax_headers = more
        if kind != tarfile.DIRTYPE and found.st_nlink > 1:
            first = self.seen.setdefault((found.st_dev, found.st_ino), path)
            if len(self.seen) > _MOST_LINKED:
                raise OSError(errno.EMLINK, f"more than {_MOST_LINKED} files with several names", path)
            if first != path:
                info.type, info.linkname = tarfile.LNKTYPE, first
                self._header(info)
                return False
        more.update(_attributes(f"/proc/self/fd/{entry}"))
        if kind == tarfile.SYMTYPE:
            info.linkname = os.readlink("", dir_fd=entry)
        if kind == tarfile.REGTYPE:
            self._regular(info, more, entry, found)
        else:
            self._header(info)
        return kind == tarfile.DIRTYPE

    def _regular(self, info: tarfile.TarInfo, more: dict[str, str], entry: int, found: os.stat_result) -> None:
        fd = os.open(f"/proc/self/fd/{entry}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            parts = _data(fd, found)
            if parts != [(0, found.st_size)]:
                more[_HOLES] = " ".join(f"{at}+{length}" for at, length in parts)
                more[_LENGTH] = str(found.st_size)
            info.size = sum(length for _, length in parts)
            self._header(info)
            for at, length in parts:
                missing = length - _copy(self.out, fd, at, length, self.until)
                if missing and not self.shared:
                    raise OSError(errno.ESTALE, "got shorter while it was packed", info.name)
                os.lseek(self.out, missing, os.SEEK_CUR)
            self._pad(info.size)
        finally:
            os.close(fd)

    def _header(self, info: tarfile.TarInfo) -> None:
        _write(self.out, info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _pad(self, size: int) -> None:
        _write(self.out, bytes(-size % tarfile.BLOCKSIZE))


def _attributes(place: str) -> dict[str, str]:
    found = {}
    for name in os.listxattr(place):
        if name not in _OF_THE_DISK:
            quoted = name.replace("%", "%25").replace("=", "%3D")  # a pax key ends at "="
            found[_XATTR + quoted] = os.getxattr(place, name).decode("utf-8", "surrogateescape")
    return found


def _data(fd: int, found: os.stat_result) -> list[tuple[int, int]]:
    """The (offset, length) of a file's data; of one without holes just one, from 0 to its end."""
    size = found.st_size
    if found.st_blocks * 512 >= size:
        return [(0, size)]
    parts, at = [], 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        parts.append((begin, at - begin))
    return parts


# -- out


def unpack(archive: Path, folder: Path, until: float, *, replace: bool = False) -> None:
    """Fill the empty folder with what the archive holds; `replace` empties it first.

    For archives whose hash was found true only. Raises ArchiveUnsafeError (the folder is not empty, an entry would lie
    outside of it, something is mounted in it: nothing is removed then), ArchiveFailedError, DeadlineError; what was
    unpacked until then stays.
    """
    try:
        root = os.open(folder, FOLDER)
        try:
            if replace:
                empty(root)
            elif os.listdir(root):
                raise ArchiveUnsafeError(path=str(folder), problem="is not empty")
            with open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
                _Unpacking(root, file.fileno(), until).run(tar)
        finally:
            os.close(root)
    except (OSError, tarfile.TarError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EXDEV:
            problem = f"something else is mounted in it, at {error.filename}"
            raise ArchiveUnsafeError(path=str(folder), problem=problem) from error
        raise ArchiveFailedError(path=str(folder), problem=f"cannot be filled from {archive.name}: {error}") from error


@dataclass
class _Unpacking:
    root: int
    source: int
    until: float
    folder: int = -1  # the one that the last entry lies in, and its path
    path: str = ""
    times: list[tuple[str, int]] = field(default_factory=list)  # of folders: making an entry changes them

    def run(self, tar: tarfile.TarFile) -> None:
        try:
            while (info := tar.next()) is not None:
                _in_time(self.until, info.name)
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                self._make(info)
            self._close()
            for path, changed_ns in reversed(self.times):
                fd = beneath(self.root, path, FOLDER)
                os.utime(fd, ns=(changed_ns, changed_ns))
                os.close(fd)
        finally:
            self._close()

    def _make(self, info: tarfile.TarInfo) -> None:
        if info.name == ".":
            self._finish(beneath(self.root, "", FOLDER), info)
            return
        parent, name = self._place(info.name)
        if info.islnk():
            self._link(info, parent, name)
        else:
            self._finish((self._regular if info.isreg() else self._other)(info, parent, name), info)

    def _other(self, info: tarfile.TarInfo, parent: int, name: str) -> int:
        """A folder, link, FIFO or device. It can be opened only by its name, and may be another by then; but one that
        belongs to us (root) no tenant can have made."""
        kind = next(k for k, value in _KINDS.items() if value == info.type)
        device = os.makedev(info.devmajor, info.devminor) if info.ischr() or info.isblk() else 0
        if info.isdir():
            os.mkdir(name, 0o700, dir_fd=parent)
        elif info.issym():
            os.symlink(info.linkname, name, dir_fd=parent)
        else:
            os.mknod(name, kind | 0o600, device, dir_fd=parent)
        entry = os.open(name, _ENTRY, dir_fd=parent)
        found = os.fstat(entry)
        if (stat.S_IFMT(found.st_mode), found.st_uid, found.st_rdev) != (kind, os.geteuid(), device):
            os.close(entry)
            raise ArchiveUnsafeError(path=info.name, problem="was exchanged while it was unpacked")
        return entry

    def _place(self, path: str) -> tuple[int, str]:
        """The descriptor of the folder that an entry goes to, and the entry's name there."""
        parent, _, name = path.rpartition("/")
        if path.startswith("/") or not {"", ".", ".."}.isdisjoint(path.split("/")):
            raise ArchiveUnsafeError(path=path, problem="would lie outside of the folder")
        if self.folder < 0 or parent != self.path:
            self._close()
            self.folder, self.path = beneath(self.root, parent, os.O_PATH | os.O_DIRECTORY), parent
        return self.folder, name

    def _close(self) -> None:
        if self.folder >= 0:
            os.close(self.folder)
        self.folder = -1

    def _link(self, info: tarfile.TarInfo, parent: int, name: str) -> None:
        there, _, first = info.linkname.rpartition("/")
        at = beneath(self.root, there, os.O_PATH | os.O_DIRECTORY)
        try:
            os.link(first, name, src_dir_fd=at, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(at)

    def _regular(self, info: tarfile.TarInfo, parent: int, name: str) -> int:
        """Never opened again by its name: what it is dressed as (setuid) must not go to a tenant's own program."""
        fd = os.open(name, _NEW, 0o600, dir_fd=parent)
        try:
            size = int(info.pax_headers.get(_LENGTH, info.size))
            holes = info.pax_headers.get(_HOLES)
            parts = [(0, size)] if holes is None else [_part(word) for word in holes.split()]
            at = info.offset_data
            for begin, length in parts:
                os.lseek(fd, begin, os.SEEK_SET)
                if _copy(fd, self.source, at, length, self.until) != length:
                    raise OSError(errno.EIO, "the archive ends early", info.name)
                at += length
            os.ftruncate(fd, size)
            return fd
        except BaseException:
            os.close(fd)
            raise

    def _finish(self, entry: int, info: tarfile.TarInfo) -> None:
        """Owner first: changing it takes mode bits and file capabilities away."""
        try:
            place = f"/proc/self/fd/{entry}"
            os.chown(place, info.uid, info.gid)
            for key, value in info.pax_headers.items():
                if key.startswith(_XATTR):
                    name = key.removeprefix(_XATTR).replace("%3D", "=").replace("%25", "%")
                    os.setxattr(place, name, value.encode("utf-8", "surrogateescape"))
            if not info.issym():
                os.chmod(place, info.mode)
            seconds, _, fraction = info.pax_headers.get("mtime", str(info.mtime)).partition(".")
            changed_ns = int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
            if info.isdir():
                self.times.append(("" if info.name == "." else info.name, changed_ns))
            else:
                os.utime(place, ns=(changed_ns, changed_ns))
        finally:
            os.close(entry)


def _part(word: str) -> tuple[int, int]:
    at, _, length = word.partition("+")
    return int(at), int(length)


# -- both


def _copy(target: int, source: int, at: int, length: int, until: float) -> int:
    """Copy by the kernel to where `target` stands; the bytes that were there to be copied."""
    done = 0
    while done < length:
        _in_time(until, "")
        count = os.sendfile(target, source, at + done, min(_STEP, length - done))
        if count == 0:
            break
        done += count
    return done


def _write(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _in_time(until: float, path: str) -> None:
    if time.monotonic() > until:
        raise DeadlineError(f"packing or unpacking files took too long (at {path or 'a large file'})")


def packed_bytes(folder: Path, until: float) -> int:
    """About how long the archive of `folder` will be, for the store's room. Raises as `pack`."""
    return sum(3 * tarfile.BLOCKSIZE + min(found.st_size, found.st_blocks * 512) for found in _every(folder, until))


def entries(folder: Path, until: float) -> int:
    """How many files, folders and others are in `folder`. Raises as `pack`."""
    return sum(1 for _ in _every(folder, until))


def _every(folder: Path, until: float) -> Iterator[os.stat_result]:
    waiting = [""]
    try:
        root = os.open(folder, FOLDER)
        try:
            while waiting:
                path = waiting.pop()
                for inner, found in listed(root, path):
                    _in_time(until, path)
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(inner)
                    yield found
        finally:
            os.close(root)
    except OSError as error:
        raise ArchiveFailedError(path=str(folder), problem=f"cannot be measured: {error}") from error
