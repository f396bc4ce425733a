"""A tree goes into an archive and comes back the same; and nothing gets out of the folder that is filled.

What only root can have in a tree: tests/node/test_portable_archive.py.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import time
from pathlib import Path

import pytest
from archive_tree import facts, plain_tree

from kybernate.errors import DeadlineError
from kybernate.store import ArchiveFailedError, ArchiveUnsafeError, archive
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
