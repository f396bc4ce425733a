"""FolderStore passes the suite; and what is its own: seals, modes, kill -9 at each step, the key's file."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from store_suite import MADE, MIB, StoreSuite, committed, write

from kybernate.store import (
    FolderStore,
    ImageDamagedError,
    NoRoomError,
    OutOfResourcesError,
    StoreFailedError,
    UnsafePathError,
    load_key,
)

KEY = bytes(range(32))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store", KEY)


class TestFolderStore(StoreSuite):
    pass


def manifest_file(store: FolderStore, epoch: int = 1) -> Path:
    return store.images(committed(store, epoch=epoch, files={"core-1.img": b"x"})).parent / "manifest.json"


def resealed(text: str, **changes: object) -> str:
    return json.dumps(json.loads(text) | changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"size":1', '"size":2'), "seal (MAC) is wrong"),
        (lambda text: text.replace('"epoch":1', '"epoch":2'), "seal (MAC) is wrong"),
        (lambda text: text[: len(text) // 2], "not readable as a manifest"),
        (lambda text: "", "not readable as a manifest"),
        (lambda text: resealed(text, version=2), "version 2"),
        (lambda text: resealed(text, extra=1), "not readable as a manifest"),
        (lambda text: resealed(text, mac="0" * 64), "seal (MAC) is wrong"),
    ],
)
def test_a_changed_manifest_is_told_and_not_used(store: FolderStore, change: Callable[[str], str], said: str) -> None:
    path = manifest_file(store)
    path.write_text(change(path.read_text()))
    good = committed(store, epoch=2, files={"core-1.img": b"x"})
    assert store.manifests() == [good]
    (damage,) = store.damaged()
    assert said in str(damage)
    assert str(path) in str(damage)


def test_a_true_manifest_in_another_place_is_not_used(store: FolderStore) -> None:
    one, two = manifest_file(store, 1), manifest_file(store, 2)
    two.write_bytes(one.read_bytes())
    assert "does not belong here" in str(store.damaged()[0])


def test_a_manifest_sealed_with_another_key_is_not_used(store: FolderStore, tmp_path: Path) -> None:
    manifest_file(store)
    other = FolderStore(tmp_path / "store", bytes(32))
    assert other.manifests() == []
    assert "another key" in str(other.damaged()[0])


def test_folders_are_private_and_files_too(store: FolderStore) -> None:
    path = manifest_file(store)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, path.parent.parent, store.images(store.manifests()[0])):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_link_in_place_of_a_folder_is_not_followed(store: FolderStore, tmp_path: Path) -> None:
    manifest = committed(store, files={"core-1.img": b"x"})
    images = store.images(manifest)
    images.rename(tmp_path / "elsewhere")
    images.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageDamagedError):
        store.check(manifest)
    (tmp_path / "linked").symlink_to(tmp_path / "store")
    with pytest.raises(UnsafePathError):
        FolderStore(tmp_path / "linked", KEY)


def test_a_folder_that_others_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    with pytest.raises(UnsafePathError, match="0777"):
        FolderStore(tmp_path / "store", KEY)


def test_a_disk_that_fills_up_leaves_the_staging_for_another_try(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = store.stage("chat-0", 1, MIB)
    write(staging.images, {"core-1.img": b"x"})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(NoRoomError):
            store.commit(staging, MADE)
    assert store.manifests() == []
    store.check(store.commit(staging, MADE))


def test_a_disk_that_fails_is_an_error_with_the_cause(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = store.stage("chat-0", 1, MIB)

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StoreFailedError, match="Input/output error"):
        store.commit(staging, MADE)


@pytest.mark.parametrize("name", ["core-1.img", "manifest.json", "images"])
def test_too_many_open_files_are_no_damage(store: FolderStore, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = committed(store, files={"core-1.img": b"x"})
    opened = os.open

    def too_many(path: str, *arguments: int, **named: int) -> int:
        if path == name:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *arguments, **named)

    def look() -> None:
        (found,) = store.manifests("chat-0")
        store.check(found)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", too_many)
        with pytest.raises(OutOfResourcesError, match=r"fs\.file-max"):
            look()
        if name == "core-1.img":
            with pytest.raises(OutOfResourcesError, match=r"fs\.file-max"):
                committed(store, epoch=2, files={"core-1.img": b"x"})
    look()
    assert store.manifests() == [manifest]


STEPS = ("mkdir", "open", "fsync", "rename", "rmdir", "unlink", "listdir")


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Run `act` in a child that dies by SIGKILL before its n-th call to the kernel; False when it came to its end."""
    child = os.fork()
    if child == 0:
        counted = 0

        def deadly(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **named: object) -> object:
                nonlocal counted
                counted += 1
                if counted > step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            return call

        for name in STEPS:
            setattr(os, name, deadly(getattr(os, name)))
        try:
            act()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_kill_9_at_any_step_of_a_commit_leaves_all_or_nothing(tmp_path: Path) -> None:
    steps, outcomes = 0, []
    while True:
        root = tmp_path / str(steps)
        older = committed(FolderStore(root, KEY), epoch=1, files={"core-1.img": b"old"})
        writer = FolderStore(root, KEY)
        killed = killed_at(steps, partial(committed, writer, epoch=2, files={"core-1.img": b"new"}))
        store = FolderStore(root, KEY)
        store.sweep()
        found = store.manifests()
        assert store.damaged() == []
        assert found[-1] == older
        for manifest in found:
            store.check(manifest, thorough=True)
        assert os.listdir(root / "staging") == []
        outcomes.append(len(found))
        if not killed:
            break
        steps += 1
    assert outcomes == sorted(outcomes)  # from some step on it exists, and never ceases to
    assert {outcomes[0], outcomes[-1]} == {1, 2}
    assert steps > 20


def test_kill_9_at_any_step_of_a_retirement_leaves_all_or_nothing(tmp_path: Path) -> None:
    steps, outcomes = 0, []
    while True:
        root = tmp_path / str(steps)
        manifest = committed(FolderStore(root, KEY), files={"core-1.img": b"old", "mm-1.img": b"m"})
        killed = killed_at(steps, partial(FolderStore(root, KEY).retire, manifest))
        store = FolderStore(root, KEY)
        store.sweep()
        assert store.damaged() == []
        assert os.listdir(root / "staging") == []
        for found in store.manifests():
            store.check(found, thorough=True)
        outcomes.append(len(store.manifests()))
        if not killed:
            break
        steps += 1
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes[-1] == 0


def test_a_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "lib" / "node.key"
    key = load_key(path)
    assert len(key) == 32
    assert load_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["node.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    load_key(tmp_path / "node.key")
    (tmp_path / "node.key").chmod(mode)
    with pytest.raises(UnsafePathError, match=r"node\.key"):
        load_key(tmp_path / "node.key")


def test_a_key_that_is_a_link_or_of_another_length_is_refused(tmp_path: Path) -> None:
    load_key(tmp_path / "real.key")
    (tmp_path / "node.key").symlink_to(tmp_path / "real.key")
    with pytest.raises(UnsafePathError):
        load_key(tmp_path / "node.key")
    os.truncate(tmp_path / "real.key", 8)
    with pytest.raises(UnsafePathError, match="8 bytes"):
        load_key(tmp_path / "real.key")
