"""What only root can have in a tree goes into an archive and comes back too; and volumes in memory."""

from __future__ import annotations

import os
import re
import stat
import struct
import subprocess
import time
from pathlib import Path

import pytest
from archive_tree import dated, facts, plain_tree

from kybernate.store import ArchiveFailedError, ArchiveUnsafeError
from kybernate.store.archive import pack, unpack

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
    """An upper folder as overlay makes it."""
    top = plain_tree(tmp_path / "upper")
    os.chown(top / "etc" / "deep" / "file", 1000, 3_000_000)
    os.chmod(top / "etc" / "deep" / "file", 0o4751)
    os.lchown(top / "link", 7, 8)
    os.mknod(top / "removed-by-the-container", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(top / "device", stat.S_IFCHR, os.makedev(1, 3))
    os.chmod(top / "device", 0o666)
    (top / "program").write_bytes(b"\x7fELF")
    os.setxattr(top / "program", "security.capability", FILE_CAPABILITY)
    os.setxattr(top / "etc", "trusted.overlay.opaque", b"y")
    os.setxattr(top / "etc" / "deep", "system.posix_acl_access", ACL)
    dated(top)
    return top


def test_an_upper_folder_comes_back_as_it_was(tree: Path, tmp_path: Path) -> None:
    before = facts(tree)
    assert len(before) == 18
    pack(tree, tmp_path / "layer.tar", soon())
    (tmp_path / "new").mkdir()
    unpack(tmp_path / "layer.tar", tmp_path / "new", soon())
    assert facts(tmp_path / "new") == before


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


def test_a_disk_that_fills_up_leaves_no_archive(tree: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True, timeout=30)
    try:
        with pytest.raises(ArchiveFailedError, match="No space left"):
            pack(tree, small / "layer.tar", soon())
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True, timeout=30)


@pytest.mark.parametrize("of", ["a file system", "a folder", "a file"])
def test_what_somebody_has_mounted_in_it_is_not_emptied(of: str, tree: Path, tmp_path: Path) -> None:
    pack(tree, tmp_path / "a.tar", soon())
    new, bucket = tmp_path / "new", tmp_path / "bucket"
    (new / "deep" / "bucket").mkdir(parents=True)
    (new / "deep" / "file").write_text("hidden")
    bucket.mkdir()
    (bucket / "precious").write_text("precious")
    place = new / "deep" / ("file" if of == "a file" else "bucket")
    source = {"a folder": str(bucket), "a file": str(bucket / "precious")}
    mount = ["--bind", source[of]] if of in source else ["-t", "tmpfs", "tmpfs"]
    subprocess.run(["mount", *mount, place], check=True, timeout=30)
    try:
        with pytest.raises(ArchiveUnsafeError, match=f"something else is mounted in it, at deep/{place.name}"):
            unpack(tmp_path / "a.tar", new, soon(), replace=True)
        assert (bucket / "precious").read_text() == "precious"
        assert sorted(path.name for path in new.rglob("*"))[-3:] == (
            ["deep", "file", "precious"] if of == "a folder" else ["bucket", "deep", "file"]
        )
    finally:
        subprocess.run(["umount", place], check=True, timeout=30)
    unpack(tmp_path / "a.tar", new, soon(), replace=True)
    assert facts(new) == facts(tree)


def test_a_tenants_folder_is_not_dressed_as_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanged between its making and its opening."""
    (tmp_path / "upper" / "folder").mkdir(parents=True)
    pack(tmp_path / "upper", tmp_path / "a.tar", soon())
    new = tmp_path / "new"
    new.mkdir()
    make = os.mkdir

    def exchanged(name: str, mode: int, *, dir_fd: int) -> None:
        make(name, mode, dir_fd=dir_fd)
        (new / name).rename(new / "aside")
        make(new / name, 0o700)
        os.chown(new / name, 1000, 1000)

    monkeypatch.setattr(os, "mkdir", exchanged)
    with pytest.raises(ArchiveUnsafeError, match="folder: was exchanged"):
        unpack(tmp_path / "a.tar", new, soon())
    assert (new / "folder").stat().st_uid == 1000
