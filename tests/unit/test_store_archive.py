"""A tree goes into an archive and comes back the same; and nothing gets out of the folder that is filled.

What only root can have in a tree: tests/node/test_portable_archive.py.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archive_tree import facts, plain_tree

from kybernate.errors import DeadlineError
from kybernate.store import ArchiveFailedError, ArchiveUnsafeError, archive
from kybernate.store import beneath as folders
from kybernate.store.archive import pack, packed_bytes, unpack


def soon() -> float:
    return time.monotonic() + 60


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return plain_tree(tmp_path / "upper")


def test_a_tree_comes_back_as_it_was(tree: Path, tmp_path: Path) -> None:
    before = facts(tree)
    assert len(before) == 15
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


def meanwhile(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """`act` is done right after the first listing of a folder with an entry `name`, before that is looked at."""
    listed = os.listdir

    def with_act(folder: int) -> list[str]:
        found = listed(folder)
        if name in found:
            monkeypatch.setattr(os, "listdir", listed)
            act()
        return found

    monkeypatch.setattr(os, "listdir", with_act)


@pytest.mark.parametrize("shared", [False, True], ids=["its own", "shared"])
@pytest.mark.parametrize(("name", "goes"), [("file", os.unlink), ("folder", shutil.rmtree)])
def test_what_goes_while_it_is_packed_is_left_out_only_where_others_write(
    name: str, goes: Callable[[Path], None], shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "upper"
    (top / "folder").mkdir(parents=True)
    (top / "folder" / "inner").write_text("x")
    (top / "file").write_text("x")
    meanwhile(monkeypatch, name, lambda: goes(top / name))
    if shared:
        pack(top, tmp_path / "a.tar", soon(), shared=True)
        with tarfile.open(tmp_path / "a.tar") as tar:
            assert name not in tar.getnames()
    else:
        with pytest.raises(ArchiveFailedError, match="No such file"):
            pack(top, tmp_path / "a.tar", soon())
        assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("shared", [False, True], ids=["its own", "shared"])
def test_a_folder_that_goes_after_it_was_seen(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entry is in the archive, its content is not."""
    top = tmp_path / "upper"
    (top / "folder").mkdir(parents=True)
    (top / "folder" / "inner").write_text("x")
    add = archive._Packing._add

    def seen(packing: Any, entry: int, path: str) -> bool:
        is_folder = add(packing, entry, path)
        if path == "folder":
            shutil.rmtree(top / "folder")
        return is_folder

    monkeypatch.setattr(archive._Packing, "_add", seen)
    if shared:
        pack(top, tmp_path / "a.tar", soon(), shared=True)
    else:
        with pytest.raises(ArchiveFailedError, match="No such file"):
            pack(top, tmp_path / "a.tar", soon())
        assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("shared", [False, True], ids=["its own", "shared"])
def test_a_file_that_gets_shorter_while_it_is_packed(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "upper"
    top.mkdir()
    (top / "file").write_bytes(b"x" * 5000)
    header = archive._Packing._header

    def shortened(packing: Any, info: tarfile.TarInfo) -> None:
        header(packing, info)
        if info.name == "file":
            os.truncate(top / "file", 0)

    monkeypatch.setattr(archive._Packing, "_header", shortened)
    if shared:
        pack(top, tmp_path / "a.tar", soon(), shared=True)
        (tmp_path / "new").mkdir()
        unpack(tmp_path / "a.tar", tmp_path / "new", soon())
        assert (tmp_path / "new" / "file").read_bytes() == bytes(5000)
    else:
        with pytest.raises(ArchiveFailedError, match="got shorter"):
            pack(top, tmp_path / "a.tar", soon())
        assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("again", [False, True], ids=["gone", "another one"])
def test_what_is_no_longer_there_in_the_end_was_not_packed(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that was taken away while it was read, or a mount: its place has another folder then."""
    top = tmp_path / "volume"
    top.mkdir()
    (top / "file").write_text("x")

    def goes() -> None:
        top.rename(tmp_path / "elsewhere")
        if again:
            top.mkdir()

    meanwhile(monkeypatch, "file", goes)
    with pytest.raises(ArchiveFailedError, match="exchanged" if again else "No such file"):
        pack(top, tmp_path / "a.tar", soon(), shared=True)
    assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("where", ["deep/bucket", "deep/bucket/precious"])
def test_nothing_is_removed_where_something_is_mounted(
    where: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real mount: tests/node/test_portable_archive.py."""
    pack(tree, tmp_path / "a.tar", soon())
    new = tmp_path / "new"
    (new / "deep" / "bucket").mkdir(parents=True)
    (new / "deep" / "bucket" / "precious").write_text("precious")
    (new / "a-file").write_text("x")
    opened = folders.beneath

    def no_crossing(root: int, path: str, flags: int) -> int:
        if path == where:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
        return opened(root, path, flags)

    monkeypatch.setattr(folders, "beneath", no_crossing)
    with pytest.raises(ArchiveUnsafeError, match=f"something else is mounted in it, at {where}\\."):
        unpack(tmp_path / "a.tar", new, soon(), replace=True)
    assert (new / "deep" / "bucket" / "precious").read_text() == "precious"
    assert (new / "a-file").read_text() == "x"


def test_a_file_exchanged_while_it_is_unpacked_is_not_dressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a tenant's program would get the owner and the setuid bit of another."""
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper" / "program").write_text("ours")
    os.chmod(tmp_path / "upper" / "program", 0o4755)
    pack(tmp_path / "upper", tmp_path / "a.tar", soon())
    new = tmp_path / "new"
    new.mkdir()
    copy = archive._copy

    def exchanged(*arguments: Any) -> int:
        (new / "program").rename(new / "aside")
        (new / "program").write_text("a tenant's")
        os.chmod(new / "program", 0o600)
        return copy(*arguments)

    monkeypatch.setattr(archive, "_copy", exchanged)
    unpack(tmp_path / "a.tar", new, soon())
    assert (new / "program").read_text() == "a tenant's"
    assert stat.S_IMODE((new / "program").stat().st_mode) == 0o600
    assert (new / "aside").read_text() == "ours"
    assert stat.S_IMODE((new / "aside").stat().st_mode) == 0o4755


@pytest.mark.parametrize("name", ["folder", "link", "fifo"])
def test_what_belongs_to_another_is_not_what_was_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exchanged before it could be opened. A tenant cannot make one of ours; that we are another stands in for it."""
    top = tmp_path / "upper"
    top.mkdir()
    {"folder": os.mkdir, "link": lambda path: os.symlink("x", path), "fifo": os.mkfifo}[name](top / name)
    pack(top, tmp_path / "a.tar", soon())
    (tmp_path / "new").mkdir()
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with pytest.raises(ArchiveUnsafeError, match=f"{name}: was exchanged"):
        unpack(tmp_path / "a.tar", tmp_path / "new", soon())


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


def test_more_linked_files_than_can_be_remembered_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "upper").mkdir()
    for number in range(3):
        (tmp_path / "upper" / f"{number}").write_text("x")
        os.link(tmp_path / "upper" / f"{number}", tmp_path / "upper" / f"{number}-again")
    monkeypatch.setattr(archive, "_MOST_LINKED", 2)
    with pytest.raises(ArchiveFailedError, match="several names"):
        pack(tmp_path / "upper", tmp_path / "a.tar", soon())
    assert not (tmp_path / "a.tar").exists()
