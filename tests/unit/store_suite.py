"""What every Store must do. An implementation's test module subclasses StoreSuite and gives it a `store` fixture."""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path

import pytest

from kybernate.store import (
    EpochTakenError,
    ImageDamagedError,
    InstanceNameError,
    Manifest,
    NoRoomError,
    Store,
    StoreFailedError,
    UnsafePathError,
)

MIB = 1 << 20
FILES = {"pages-1.img": os.urandom(70 * MIB), "core-1.img": b"core", "descriptors.json": b"[]", "empty.img": b""}
MADE = {"criu": "4.2.1", "mounts": ["/dev/shm"], "cookie": None}


def committed(
    store: Store, instance: str = "chat-0", epoch: int = 1, files: dict[str, bytes] | None = None
) -> Manifest:
    staging = store.stage(instance, epoch, MIB)
    write(staging.images, FILES if files is None else files)
    return store.commit(staging, MADE)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def refused_within_a_second(store: Store, manifest: Manifest, thorough: bool = False) -> str:
    begun = time.monotonic()
    with pytest.raises(ImageDamagedError) as refusal:
        store.check(manifest, thorough)
    assert time.monotonic() - begun < 1
    return str(refusal.value)


class StoreSuite:
    def test_a_commit_is_listed_and_its_images_are_what_was_written(self, store: Store) -> None:
        manifest = committed(store)
        assert store.manifests() == store.manifests("chat-0") == [manifest]
        assert manifest.made == MADE
        assert manifest.size_bytes == sum(map(len, FILES.values()))
        assert {file.name: file.size for file in manifest.files} == {name: len(data) for name, data in FILES.items()}
        for name, content in FILES.items():
            assert (store.images(manifest) / name).read_bytes() == content
        store.check(manifest)
        store.check(manifest, thorough=True)

    def test_newest_epoch_comes_first(self, store: Store) -> None:
        for epoch in (2, 10, 9):
            committed(store, epoch=epoch, files={"core-1.img": b"x"})
        committed(store, "chat-1", 3, {"core-1.img": b"x"})
        assert [found.epoch for found in store.manifests("chat-0")] == [10, 9, 2]
        assert {(found.instance, found.epoch) for found in store.manifests()} == {
            ("chat-0", 10),
            ("chat-0", 9),
            ("chat-0", 2),
            ("chat-1", 3),
        }

    def test_what_is_not_committed_is_not_listed(self, store: Store) -> None:
        staging = store.stage("chat-0", 1, MIB)
        write(staging.images, FILES)
        assert store.manifests() == []

    def test_commit_twice_gives_the_same_manifest(self, store: Store) -> None:
        staging = store.stage("chat-0", 1, MIB)
        write(staging.images, {"core-1.img": b"x"})
        assert store.commit(staging, MADE) == store.commit(staging, MADE)

    def test_files_may_be_open_during_the_commit_and_later_ones_do_not_count(self, store: Store) -> None:
        staging = store.stage("chat-0", 1, MIB)
        write(staging.images, {"core-1.img": b"x"})
        images = os.open(staging.images, os.O_RDONLY | os.O_DIRECTORY)
        manifest = store.commit(staging, MADE)
        late = os.open("stats-dump", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=images)
        os.write(late, b"late")
        os.close(late)
        os.close(images)
        assert (store.images(manifest) / "stats-dump").read_bytes() == b"late"
        store.check(manifest)

    def test_there_may_be_more_files_than_can_be_open(self, store: Store) -> None:
        """CRIU writes one for each thread."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = {f"core-{number}.img": f"{number}".encode() * (number % 7) for number in range(600)}
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        try:
            manifest = committed(store, files=files)
            store.check(manifest)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [(file.name, file.size) for file in manifest.files] == sorted((n, len(c)) for n, c in files.items())
        flip(store.images(manifest) / "core-599.img", 0)
        assert "core-599.img: its content has changed" in refused_within_a_second(store, manifest)

    def test_linked_files_are_listed_as_they_were_and_not_read(self, store: Store) -> None:
        first = committed(store)
        staging = store.stage("chat-0", 2, MIB)
        for file in first.files:
            os.link(store.images(first) / file.name, staging.images / file.name)
        write(staging.images, {"layer.tar": b"files"})
        flip(staging.images / "pages-1.img", 12345)
        second = store.commit(staging, MADE, first.files)
        assert {file.name for file in second.files} == {*FILES, "layer.tar"}
        assert [file for file in second.files if file.name != "layer.tar"] == list(first.files)
        assert "pages-1.img" in refused_within_a_second(store, second)
        flip(store.images(second) / "pages-1.img", 12345)
        store.check(second, thorough=True)
        store.retire(first)
        store.check(second)

    def test_a_linked_file_that_is_shorter_now_is_refused(self, store: Store) -> None:
        first = committed(store)
        staging = store.stage("chat-0", 2, MIB)
        os.link(store.images(first) / "core-1.img", staging.images / "core-1.img")
        os.truncate(staging.images / "core-1.img", 1)
        with pytest.raises(StoreFailedError, match="core-1"):
            store.commit(staging, MADE, first.files)

    def test_an_epoch_is_written_once(self, store: Store) -> None:
        committed(store, files={"core-1.img": b"x"})
        with pytest.raises(EpochTakenError, match=r"chat-0: epoch 1"):
            store.stage("chat-0", 1, MIB)

    def test_stage_again_begins_with_an_empty_folder(self, store: Store) -> None:
        write(store.stage("chat-0", 1, MIB).images, FILES)
        staging = store.stage("chat-0", 1, MIB)
        assert list(staging.images.iterdir()) == []

    def test_nothing_staged_cannot_be_committed(self, store: Store) -> None:
        staging = store.stage("chat-0", 1, MIB)
        store.discard(staging)
        store.discard(staging)
        with pytest.raises(StoreFailedError):
            store.commit(staging, MADE)
        assert store.manifests() == []

    def test_discard_leaves_the_committed_alone(self, store: Store) -> None:
        staging = store.stage("chat-0", 1, MIB)
        write(staging.images, {"core-1.img": b"x"})
        manifest = store.commit(staging, MADE)
        store.discard(staging)
        assert store.manifests() == [manifest]

    @pytest.mark.parametrize("thorough", [False, True])
    @pytest.mark.parametrize("at", [0, 40 * MIB, 70 * MIB - 1])
    def test_a_flipped_bit_is_refused(self, store: Store, at: int, thorough: bool) -> None:
        manifest = committed(store)
        flip(store.images(manifest) / "pages-1.img", at)
        said = refused_within_a_second(store, manifest, thorough)
        assert "pages-1.img: its content has changed" in said

    def test_a_truncated_file_is_refused(self, store: Store) -> None:
        manifest = committed(store)
        os.truncate(store.images(manifest) / "pages-1.img", 70 * MIB - 4096)
        assert f"pages-1.img: has {70 * MIB - 4096} bytes, {70 * MIB} were written" in refused_within_a_second(
            store, manifest
        )

    @pytest.mark.parametrize("name", sorted(FILES))
    def test_a_missing_file_is_refused(self, store: Store, name: str) -> None:
        manifest = committed(store)
        (store.images(manifest) / name).unlink()
        assert f"{name}: is missing" in refused_within_a_second(store, manifest)

    @pytest.mark.parametrize("name", ["pages-2.img", "layer.tar", "portable.json"])
    def test_a_file_that_a_restore_would_read_and_nobody_listed_is_refused(self, store: Store, name: str) -> None:
        manifest = committed(store)
        (store.images(manifest) / name).write_bytes(b"x")
        assert f"{name}: is not in the manifest" in refused_within_a_second(store, manifest)

    def test_a_link_in_place_of_a_file_is_refused(self, store: Store, tmp_path: Path) -> None:
        manifest = committed(store)
        image = store.images(manifest) / "core-1.img"
        image.rename(tmp_path / "elsewhere")
        image.symlink_to(tmp_path / "elsewhere")
        assert "core-1.img: cannot be opened" in refused_within_a_second(store, manifest)

    def test_retired_is_gone_and_may_be_retired_again(self, store: Store) -> None:
        older, newer = (committed(store, epoch=epoch, files={"core-1.img": b"x"}) for epoch in (1, 2))
        store.retire(older)
        store.retire(older)
        assert store.manifests() == [newer]
        refused_within_a_second(store, older)
        store.check(newer)

    def test_forgotten_is_gone_with_every_epoch_and_the_name_may_come_again(self, store: Store) -> None:
        for epoch in (1, 2):
            committed(store, epoch=epoch, files={"core-1.img": b"x"})
        other = committed(store, "chat-1", 1, {"core-1.img": b"x"})
        store.forget("chat-0")
        store.forget("chat-0")
        assert store.manifests() == [other]
        assert committed(store, epoch=1, files={"core-1.img": b"y"}) in store.manifests("chat-0")

    def test_sweep_takes_leftovers_and_spares_what_is_in_flight(self, store: Store) -> None:
        manifest = committed(store, epoch=1, files={"core-1.img": b"x"})
        dead = store.stage("chat-0", 2, MIB)
        living = store.stage("chat-1", 3, MIB)
        assert store.sweep([("chat-1", 3)]) == ["chat-0-2"]
        assert store.sweep([("chat-1", 3)]) == []
        assert not dead.images.exists()
        assert living.images.is_dir()
        assert store.manifests() == [manifest]

    def test_no_room_is_said_before_anything_is_written(self, store: Store) -> None:
        with pytest.raises(NoRoomError, match=r"chat-0: .* needs"):
            store.stage("chat-0", 1, 1 << 60)
        assert store.sweep() == []

    def test_room_promised_to_one_dump_is_not_promised_to_another(self, store: Store) -> None:
        with pytest.raises(NoRoomError) as refusal:
            store.stage("chat-0", 1, 1 << 60)
        most = int(refusal.value.room_bytes * 0.75)
        first = store.stage("chat-0", 1, most)
        with pytest.raises(NoRoomError):
            store.stage("chat-1", 1, most)
        store.discard(first)
        store.discard(store.stage("chat-1", 1, most))

    def test_linked_files_use_nothing_of_the_room_that_was_promised(self, store: Store) -> None:
        first = committed(store)
        with pytest.raises(NoRoomError) as refusal:
            store.stage("chat-1", 1, 1 << 60)
        half = int(refusal.value.room_bytes) // 2
        second = store.stage("chat-0", 2, half)
        for file in first.files:
            os.link(store.images(first) / file.name, second.images / file.name)
        with pytest.raises(NoRoomError):
            store.stage("chat-1", 1, half + first.size_bytes // 2)

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../chat", "a/b", "/etc", "-a", "a-", "A", "a\0b", "a\n", "a" * 300, "ä"]
    )
    def test_names_that_are_paths_or_strange_are_refused(self, store: Store, name: str) -> None:
        with pytest.raises(InstanceNameError):
            store.stage(name, 1, MIB)
        with pytest.raises(InstanceNameError):
            store.manifests(name)

    @pytest.mark.parametrize("epoch", [-1, 1 << 63, True])
    def test_strange_epochs_are_refused(self, store: Store, epoch: int) -> None:
        with pytest.raises(InstanceNameError):
            store.stage("chat-0", epoch, MIB)

    def test_a_link_or_a_folder_among_the_images_is_refused_at_commit(self, store: Store) -> None:
        staging = store.stage("chat-0", 1, MIB)
        (staging.images / "key.img").symlink_to("/etc/shadow")
        with pytest.raises(UnsafePathError, match=r"key\.img"):
            store.commit(staging, MADE)
        (staging.images / "key.img").unlink()
        (staging.images / "folder").mkdir()
        with pytest.raises(UnsafePathError, match="folder"):
            store.commit(staging, MADE)
        assert store.manifests() == []

    def test_many_instances_at_once(self, store: Store) -> None:
        failed: list[BaseException] = []

        def life(name: str) -> None:
            try:
                for epoch in range(5):
                    manifest = committed(store, name, epoch, {"core-1.img": os.urandom(MIB)})
                    store.check(manifest)
                    store.retire(manifest)
            except BaseException as error:
                failed.append(error)

        lives = [threading.Thread(target=life, args=(f"chat-{n}",)) for n in range(6)]
        for each in lives:
            each.start()
        for each in lives:
            each.join()
        assert failed == []
        assert store.manifests() == []
