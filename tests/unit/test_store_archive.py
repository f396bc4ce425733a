"""A tree goes into an archive and comes back the same; and nothing gets out of the folder that is filled."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from kybernate.errors import DeadlineError
from kybernate.store import ArchiveFailedError, ArchiveUnsafeError
from kybernate.store.archive import pack, packed_bytes, unpack

# VFS_CAP_REVISION_2, effective; CAP_NET_BIND_SERVICE (linux/capability.h)
FILE_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
# user::rw-, user:1234:rw-, group::r--, mask::rw-, other::--- (linux/posix_acl_xattr.h)
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permission, who)
    for tag, permission, who in (
        (1, 6, 0xFFFFFFFF),
        (2, 6, 1234),
        (4, 4, 0xFFFFFFFF),
        (16, 6, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    )
)


def soon() -> float:
    return time.monotonic() + 60


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """All that an upper folder may hold."""
    top = tmp_path / "upper"
    top.mkdir(mode=0o751)
    (top / "etc" / "deep").mkdir(parents=True)
    (top / "etc" / "deep" / "file").write_text("some content\n")
    os.chown(top / "etc" / "deep" / "file", 1000, 3_000_000)
    os.chmod(top / "etc" / "deep" / "file", 0o4751)
    os.link(top / "etc" / "deep" / "file", top / "etc" / "second-name")
    (top / "empty").write_bytes(b"")
    (top / ".hidden folder").mkdir(mode=0o1777)
    (top / ("l" * 200)).write_text("a long name")
    (top / os.fsdecode(b"not-utf8-\xff")).write_text("a name in another encoding")
    (top / "new\nline").write_text("x")
    os.symlink("../../../etc/passwd", top / "link")
    os.lchown(top / "link", 7, 8)
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "removed-by-the-container", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(top / "device", stat.S_IFCHR, os.makedev(1, 3))
    os.chmod(top / "device", 0o666)
    with open(top / "sparse", "wb") as file:
        file.truncate(40 << 20)
        file.seek(8 << 20)
        file.write(b"in the midst")
    with open(top / "all-hole", "wb") as file:
        file.truncate(1 << 20)
    (top / "large").write_bytes(os.urandom((9 << 20) + 77))
    (top / "program").write_bytes(b"\x7fELF")
    os.setxattr(top / "program", "security.capability", FILE_CAPABILITY)
    os.setxattr(top / "etc", "trusted.overlay.opaque", b"y")
    os.setxattr(top / "empty", "user.with=sign%", b"\x00\xff\x80binary\n")
    os.setxattr(top / "etc" / "deep", "system.posix_acl_access", ACL)
    for number, path in enumerate(sorted(top.rglob("*"))):
        os.utime(path, ns=(0, 1_700_000_000_123_456_789 + number), follow_symlinks=False)
    return top


def facts(top: Path) -> dict[str, Any]:
    """Everything that must be the same afterwards."""
    found: dict[str, Any] = {}
    names: dict[int, str] = {}
    for path in sorted([top, *top.rglob("*")]):
        seen = path.lstat()
        name = str(path.relative_to(top))
        kind = stat.S_IFMT(seen.st_mode)
        content = path.read_bytes() if kind == stat.S_IFREG else os.readlink(path) if kind == stat.S_IFLNK else b""
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        same_as = names.setdefault(seen.st_ino, name)
        found[name] = (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_rdev, content, attributes, same_as)
        if path != top:
            found[name] += (seen.st_mtime_ns,)
    return found


def test_a_tree_comes_back_as_it_was(tree: Path, tmp_path: Path) -> None:
    before = facts(tree)
    assert len(before) == 18
    length = pack(tree, tmp_path / "layer.tar", soon())
    assert length == (tmp_path / "layer.tar").stat().st_size
    assert length < 12 << 20, "holes take no room"
    assert stat.S_IMODE((tmp_path / "layer.tar").stat().st_mode) == 0o600
    (tmp_path / "new").mkdir()
    unpack(tmp_path / "layer.tar", tmp_path / "new", soon())
    assert facts(tmp_path / "new") == before
    for name in ("sparse", "all-hole"):
        assert (tmp_path / "new" / name).stat().st_blocks <= (tree / name).stat().st_blocks + 8


def test_the_room_that_is_asked_for_is_about_what_it_takes(tree: Path, tmp_path: Path) -> None:
    length = pack(tree, tmp_path / "layer.tar", soon())
    assert length * 0.9 < packed_bytes(tree, soon()) < length * 1.1


def test_gnu_tar_reads_it_too(tree: Path, tmp_path: Path) -> None:
    pack(tree, tmp_path / "layer.tar", soon())
    listed = subprocess.run(
        ["tar", "--list", "--numeric-owner", "--verbose", "--file", tmp_path / "layer.tar"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout
    assert re.search(r"^crw-rw-rw- 0/0 +1,3 .* device$", listed, re.MULTILINE)
    assert "etc/second-name link to etc/deep/file" in listed or "etc/deep/file link to etc/second-name" in listed


def test_what_names_inodes_of_the_old_disk_stays_behind(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper" / "file").write_text("x")
    os.setxattr(tmp_path / "upper" / "file", "trusted.overlay.origin", b"handle")
    os.setxattr(tmp_path / "upper" / "file", "trusted.overlay.metacopy", b"")
    pack(tmp_path / "upper", tmp_path / "a.tar", soon())
    (tmp_path / "new").mkdir()
    unpack(tmp_path / "a.tar", tmp_path / "new", soon())
    assert os.listxattr(tmp_path / "new" / "file") == ["trusted.overlay.metacopy"]


def test_sockets_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    os.mknod(tmp_path / "upper" / "socket", stat.S_IFSOCK | 0o600)
    pack(tmp_path / "upper", tmp_path / "a.tar", soon())
    (tmp_path / "new").mkdir()
    unpack(tmp_path / "a.tar", tmp_path / "new", soon())
    assert os.listdir(tmp_path / "new") == []


def test_a_folder_with_content_is_not_filled_unless_it_is_to_be_replaced(tree: Path, tmp_path: Path) -> None:
    pack(tree, tmp_path / "a.tar", soon())
    new, outside = tmp_path / "new", tmp_path / "outside"
    for folder in (new / "old", outside):
        folder.mkdir(parents=True)
        (folder / "file").write_text("precious")
    os.symlink(outside, new / "etc")
    with pytest.raises(ArchiveUnsafeError, match="is not empty"):
        unpack(tmp_path / "a.tar", new, soon())
    assert (new / "old" / "file").exists()
    unpack(tmp_path / "a.tar", new, soon(), replace=True)
    assert facts(new) == facts(tree)
    assert (outside / "file").read_text() == "precious"


def written(path: Path, *entries: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:") as tar:
        for entry in entries:
            tar.addfile(entry, io.BytesIO(b"x" * entry.size))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = 1 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "entries",
    [
        [entry("/outside/file")],
        [entry("../outside/file")],
        [entry("a/../../outside/file")],
        [entry("link", tarfile.SYMTYPE, "../outside"), entry("link/file")],
        [entry("link", tarfile.SYMTYPE, "../outside/secret"), entry("link")],
        [entry("hard", tarfile.LNKTYPE, "../outside/secret")],
        [entry("link", tarfile.SYMTYPE, "../outside"), entry("hard", tarfile.LNKTYPE, "link/secret")],
    ],
    ids=["absolute", "up", "up later", "through a link", "onto a link", "hard link out", "hard link through a link"],
)
def test_nothing_gets_out_of_the_folder(entries: list[tarfile.TarInfo], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (tmp_path / "new").mkdir()
    with pytest.raises((ArchiveUnsafeError, ArchiveFailedError)):
        unpack(written(tmp_path / "a.tar", *entries), tmp_path / "new", soon())
    assert os.listdir(tmp_path / "outside") == ["secret"]
    assert (tmp_path / "outside" / "secret").read_text() == "secret"
    assert (tmp_path / "outside" / "secret").stat().st_nlink == 1
    assert not Path("/outside").exists()


def test_a_folder_exchanged_for_a_link_while_it_is_packed_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volume" / "a").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    listed = os.listdir

    def exchange(folder: int) -> list[str]:
        found = listed(folder)
        if "a" in found and not (tmp_path / "volume" / "a").is_symlink():
            monkeypatch.setattr(os, "listdir", listed)
            seen = listed(folder)
            (tmp_path / "volume" / "a").rename(tmp_path / "volume" / "b")
            os.symlink(tmp_path / "outside", tmp_path / "volume" / "a")
            return seen
        return found

    monkeypatch.setattr(os, "listdir", exchange)
    pack(tmp_path / "volume", tmp_path / "a.tar", soon())
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert "a/secret" not in tar.getnames()
    assert (tmp_path / "volume" / "a").is_symlink()


def test_its_deadline_ends_it_and_leaves_no_archive(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DeadlineError):
        pack(tree, tmp_path / "a.tar", time.monotonic() - 1)
    assert not (tmp_path / "a.tar").exists()
    pack(tree, tmp_path / "a.tar", soon())
    (tmp_path / "new").mkdir()
    with pytest.raises(DeadlineError):
        unpack(tmp_path / "a.tar", tmp_path / "new", time.monotonic() - 1)


def test_an_archive_that_ends_early_is_an_error(tree: Path, tmp_path: Path) -> None:
    length = pack(tree, tmp_path / "a.tar", soon())
    os.truncate(tmp_path / "a.tar", length // 2)
    (tmp_path / "new").mkdir()
    with pytest.raises(ArchiveFailedError):
        unpack(tmp_path / "a.tar", tmp_path / "new", soon())
