"""The store of tier NVME in its simple form: whole image files in folders.

    <root>/staging/<instance>-<epoch>/images/        being written
    <root>/instances/<instance>/<epoch>/images/      committed
    <root>/instances/<instance>/<epoch>/manifest.json

Commit, in this order: hash and fsync all files (both at once), fsync their folder, write and fsync the manifest, rename
staging/<instance>-<epoch> to instances/<instance>/<epoch>, fsync both parents. The rename is the one moment at which
the checkpoint begins to exist. Deletion is the same backwards: rename into staging/, then remove.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from kybernate.store.contents import PASSING, record, verify
from kybernate.store.errors import (
    EpochTakenError,
    ImageDamagedError,
    ManifestDamagedError,
    NoRoomError,
    OutOfResourcesError,
    StoreFailedError,
    UnsafePathError,
)
from kybernate.store.manifest import MANIFEST, seal, unseal
from kybernate.store.paths import folder, read_file, remove_tree, write_file
from kybernate.store.types import ImageFile, Manifest, Staging, validate_name

IMAGES = "images"
_STAGING = "staging"
_INSTANCES = "instances"


class FolderStore:
    """A Store in a folder of a local file system that has atomic rename and fsync (ext4, xfs, btrfs).

    `reserve_bytes` of the file system are never given to a checkpoint.
    """

    def __init__(self, root: Path, key: bytes, reserve_bytes: int = 256 << 20) -> None:
        self._root = Path(root)
        self._key = key
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()  # names under the root change one at a time
        self._promised: dict[str, int] = {}  # staging name -> bytes
        for part in (_STAGING, _INSTANCES):
            with folder(self._root, part, make=True):
                pass

    # -- a checkpoint's way in

    def stage(self, instance: str, epoch: int, needed_bytes: int) -> Staging:
        validate_name(instance, epoch)
        name = f"{instance}-{epoch}"
        with self._lock, self._failures(instance, needed_bytes), folder(self._root, _STAGING) as staging:
            if os.path.lexists(self._place(instance, epoch)):
                raise EpochTakenError(instance=instance, epoch=epoch)
            remove_tree(name, staging)
            self._promised.pop(name, None)
            room_bytes = self._room_bytes(staging)
            if room_bytes < needed_bytes:
                raise self._no_room(instance, needed_bytes, room_bytes)
            with folder(self._root, _STAGING, name, IMAGES, make=True):
                self._promised[name] = needed_bytes
        return Staging(instance, epoch, self._root / _STAGING / name / IMAGES)

    def commit(self, staging: Staging, made: dict[str, Any], linked: Sequence[ImageFile] = ()) -> Manifest:
        instance, epoch = staging.instance, staging.epoch
        validate_name(instance, epoch)
        name = f"{instance}-{epoch}"
        with self._failures(instance, 0):
            try:
                with folder(self._root, _STAGING, name) as whole, folder(self._root, _STAGING, name, IMAGES) as images:
                    manifest, text = seal(instance, epoch, record(images, linked), made, self._key)
                    os.fsync(images)
                    write_file(MANIFEST, whole, text)
                    os.fsync(whole)
            except FileNotFoundError as error:
                if os.path.lexists(staging.images) or not os.path.lexists(self._place(instance, epoch)):
                    raise StoreFailedError(path=str(staging.images), problem=f"nothing to commit: {error}") from error
                return self._manifest(instance, epoch)
            self._publish(instance, epoch, name)
        self._promised.pop(name, None)
        return manifest

    def discard(self, staging: Staging) -> None:
        validate_name(staging.instance, staging.epoch)
        name = f"{staging.instance}-{staging.epoch}"
        with self._lock, folder(self._root, _STAGING) as at:
            remove_tree(name, at)
            self._promised.pop(name, None)

    # -- what is there

    def manifests(self, instance: str | None = None) -> list[Manifest]:
        return [found for found in self._survey(instance) if isinstance(found, Manifest)]

    def damaged(self, instance: str | None = None) -> list[ManifestDamagedError]:
        return [found for found in self._survey(instance) if isinstance(found, ManifestDamagedError)]

    def images(self, manifest: Manifest) -> Path:
        validate_name(manifest.instance, manifest.epoch)
        return self._place(manifest.instance, manifest.epoch) / IMAGES

    def check(self, manifest: Manifest, thorough: bool = False) -> None:
        path = self.images(manifest)

        def damage(name: str, problem: str) -> ImageDamagedError:
            where = str(path / name)
            return ImageDamagedError(instance=manifest.instance, epoch=manifest.epoch, path=where, problem=problem)

        try:
            with folder(self._root, _INSTANCES, manifest.instance, str(manifest.epoch), IMAGES) as images:
                verify(images, manifest, thorough, damage)
        except (OSError, UnsafePathError) as error:
            _refuse_passing(path, error)
            raise damage("", f"cannot be opened: {error}") from error

    # -- a checkpoint's way out

    def retire(self, manifest: Manifest) -> None:
        validate_name(manifest.instance, manifest.epoch)
        grave = f".retired-{manifest.instance}-{manifest.epoch}-{secrets.token_hex(4)}"
        with folder(self._root, _STAGING) as staging:
            with (
                self._lock,
                contextlib.suppress(FileNotFoundError),
                folder(self._root, _INSTANCES, manifest.instance) as of_it,
            ):
                os.rename(str(manifest.epoch), grave, src_dir_fd=of_it, dst_dir_fd=staging)
                os.fsync(of_it)
                self._drop_if_empty(manifest.instance)
            remove_tree(grave, staging)

    def forget(self, instance: str) -> None:
        validate_name(instance, 1)
        grave = f".forgotten-{instance}-{secrets.token_hex(4)}"
        with folder(self._root, _STAGING) as staging:
            with (
                self._lock,
                contextlib.suppress(FileNotFoundError),
                folder(self._root, _INSTANCES) as instances,
            ):
                os.rename(instance, grave, src_dir_fd=instances, dst_dir_fd=staging)
                os.fsync(instances)
            remove_tree(grave, staging)

    def sweep(self, in_flight: Collection[tuple[str, int]] = ()) -> list[str]:
        spared = {f"{instance}-{epoch}" for instance, epoch in in_flight}
        removed = []
        with self._lock, folder(self._root, _STAGING) as staging, folder(self._root, _INSTANCES) as instances:
            for name in sorted(os.listdir(staging)):
                if name not in spared:
                    remove_tree(name, staging)
                    self._promised.pop(name, None)
                    removed.append(name)
            for instance in os.listdir(instances):
                self._drop_if_empty(instance)
        return removed

    # -- inside

    def _place(self, instance: str, epoch: int) -> Path:
        return self._root / _INSTANCES / instance / str(epoch)

    def _publish(self, instance: str, epoch: int, name: str) -> None:
        with (
            self._lock,
            folder(self._root, _STAGING) as staging,
            folder(self._root, _INSTANCES, instance, make=True) as of_it,
        ):
            try:
                os.rename(name, str(epoch), src_dir_fd=staging, dst_dir_fd=of_it)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise EpochTakenError(instance=instance, epoch=epoch) from error
                raise
            os.fsync(of_it)
            os.fsync(staging)

    def _manifest(self, instance: str, epoch: int) -> Manifest:
        path = str(self._place(instance, epoch) / MANIFEST)
        try:
            with folder(self._root, _INSTANCES, instance, str(epoch)) as at:
                text = read_file(MANIFEST, at)
        except (OSError, UnsafePathError) as error:
            _refuse_passing(path, error)
            raise ManifestDamagedError(path=path, problem=f"cannot be read: {error}") from error
        return unseal(text, path, instance, epoch, self._key)

    def _survey(self, instance: str | None) -> Iterator[Manifest | ManifestDamagedError]:
        if instance is not None:
            validate_name(instance, 0)
        with folder(self._root, _INSTANCES) as at:
            names = sorted(os.listdir(at)) if instance is None else [instance]
        for name in names:
            try:
                with folder(self._root, _INSTANCES, name) as of_it:
                    entries = os.listdir(of_it)
            except FileNotFoundError:
                continue
            except UnsafePathError as error:
                yield ManifestDamagedError(path=str(self._root / _INSTANCES / name), problem=str(error))
                continue
            for strange in sorted(entry for entry in entries if not entry.isdecimal()):
                yield ManifestDamagedError(path=str(self._root / _INSTANCES / name / strange), problem="is no epoch")
            for epoch in sorted((int(entry) for entry in entries if entry.isdecimal()), reverse=True):
                try:
                    yield self._manifest(name, epoch)
                except ManifestDamagedError as error:
                    if os.path.lexists(self._place(name, epoch)):  # else it was retired meanwhile
                        yield error

    def _room_bytes(self, staging: int) -> int:
        """Free space less the reserve and less what running dumps were promised and did not write yet."""
        file_system = os.fstatvfs(staging)
        free_bytes = file_system.f_bavail * file_system.f_frsize
        owed_bytes = 0
        for name, promised_bytes in self._promised.items():
            with contextlib.suppress(FileNotFoundError), folder(self._root, _STAGING, name, IMAGES) as images:
                stats = [os.stat(file, dir_fd=images, follow_symlinks=False) for file in os.listdir(images)]
                # What is linked from another checkpoint was there before.
                written_bytes = sum(found.st_blocks * 512 for found in stats if found.st_nlink == 1)
                owed_bytes += max(0, promised_bytes - written_bytes)
        return free_bytes - self._reserve_bytes - owed_bytes

    def _no_room(self, instance: str, needed_bytes: int, room_bytes: int) -> NoRoomError:
        return NoRoomError(
            instance=instance,
            path=str(self._root),
            needed_bytes=needed_bytes,
            room_bytes=max(0, room_bytes),
            reserve_bytes=self._reserve_bytes,
        )

    def _drop_if_empty(self, instance: str) -> None:
        with contextlib.suppress(OSError), folder(self._root, _INSTANCES) as instances:
            os.rmdir(instance, dir_fd=instances)  # ENOTEMPTY: there is another epoch

    @contextlib.contextmanager
    def _failures(self, instance: str, needed_bytes: int) -> Iterator[None]:
        """What the file system says, as an error of ours."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_room(instance, needed_bytes, 0) from error
            _refuse_passing(error.filename or self._root, error)
            raise StoreFailedError(
                path=str(error.filename or self._root), problem=error.strerror or str(error)
            ) from error


def _refuse_passing(path: str | Path, error: Exception) -> None:
    """What says nothing of the file that it happened to must not pass for damage. Raises OutOfResourcesError."""
    if isinstance(error, OSError) and error.errno in PASSING:
        raise OutOfResourcesError(path=str(path), problem=error.strerror or str(error)) from error
