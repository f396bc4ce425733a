"""Trees of files for tests of archives, and everything about a tree that must be the same afterwards."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any


def plain_tree(top: Path) -> Path:
    """All that an upper folder may hold and no root is needed for."""
    top.mkdir(mode=0o751)
    (top / "etc" / "deep").mkdir(parents=True)
    (top / "etc" / "deep" / "file").write_text("some content\n")
    os.chmod(top / "etc" / "deep" / "file", 0o751)
    os.link(top / "etc" / "deep" / "file", top / "etc" / "second-name")
    (top / "empty").write_bytes(b"")
    (top / ".hidden folder").mkdir(mode=0o1777)
    (top / ("l" * 200)).write_text("a long name")
    (top / os.fsdecode(b"not-utf8-\xff")).write_text("a name in another encoding")
    (top / "new\nline").write_text("x")
    os.symlink("../../../etc/passwd", top / "link")
    os.mkfifo(top / "fifo", 0o640)
    with open(top / "sparse", "wb") as file:
        file.truncate(40 << 20)
        file.seek(8 << 20)
        file.write(b"in the midst")
    with open(top / "all-hole", "wb") as file:
        file.truncate(1 << 20)
    (top / "large").write_bytes(os.urandom((9 << 20) + 77))
    os.setxattr(top / "empty", "user.with=sign%", b"\x00\xff\x80binary\n")
    dated(top)
    return top


def dated(top: Path) -> None:
    for number, path in enumerate(sorted(top.rglob("*"))):
        os.utime(path, ns=(0, 1_700_000_000_123_456_789 + number), follow_symlinks=False)


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
