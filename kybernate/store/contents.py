"""The files of one checkpoint: taken down at commit, compared before a restore.

Both look at a flat folder of regular files. What is no regular file is refused at commit and damage at a check.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kybernate.store import hashing
from kybernate.store.errors import ImageDamagedError, OutOfResourcesError, StoreFailedError, UnsafePathError
from kybernate.store.paths import open_file
from kybernate.store.types import ImageFile, Manifest

T = TypeVar("T")

# These say nothing of the file: the next try may find it whole.
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
_READ = (
    ".img",
    ".tar",
    ".json",
)  # what a restore reads; CRIU's notes of the dump, as stats-dump, come after the commit
_FSYNCS = 8  # at once: they share the journal's commits
_OPEN = 128  # at once, the largest first: CRIU writes a file for each thread, and others need descriptors too


def record(images: int, linked: Sequence[ImageFile] = ()) -> tuple[ImageFile, ...]:
    """Hash all files of the folder `images` (a descriptor) and bring them to the disk. What is known of those that are
    `linked` stays true: they are not read, and are on the disk.

    The disk writes while the cores hash: both wait for the same bytes, neither for the other.
    Raises OSError, UnsafePathError, StoreFailedError for a file that somebody still writes to.
    """
    sizes = {name: _stat(name, images).st_size for name in sorted(os.listdir(images))}
    found = {file.name: file for file in linked if file.name in sizes}
    for names in _batches(sorted(sizes.keys() - found.keys(), key=lambda name: -sizes[name])):
        with contextlib.ExitStack() as opened:
            files = [_opened(name, images, opened) for name in names]
            disk = opened.enter_context(ThreadPoolExecutor(_FSYNCS))
            cores = opened.enter_context(ThreadPoolExecutor(hashing.threads()))
            syncing = [disk.submit(os.fsync, fd) for fd, _ in files]
            hashes = hashing.digests(files, [hashing.XXH3, hashing.BLAKE3], cores)
            for sync in syncing:
                sync.result()
            for name, (_, size), both in zip(names, files, hashes, strict=True):
                found[name] = ImageFile(name, size, *both)
    for name, file in found.items():
        if _stat(name, images).st_size != file.size:
            raise StoreFailedError(
                path=name, problem="has not the length that was recorded: somebody still writes to it"
            )
    return tuple(found[name] for name in sizes)


def _batches(every: Sequence[T]) -> Iterator[Sequence[T]]:
    return (every[at : at + _OPEN] for at in range(0, len(every), _OPEN))


def _opened(name: str, images: int, opened: contextlib.ExitStack) -> tuple[int, int]:
    fd, size = open_file(name, images)
    opened.callback(os.close, fd)
    return fd, size


def _stat(name: str, images: int) -> os.stat_result:
    return os.stat(name, dir_fd=images, follow_symlinks=False)


def verify(images: int, manifest: Manifest, thorough: bool, damage: Callable[[str, str], ImageDamagedError]) -> None:
    """Compare the folder `images` with what was recorded; `damage(file name, problem)` makes the error to raise.

    Names and lengths come first, for they cost nothing: a missing or short file is found in under a millisecond.
    """
    listed = {file.name for file in manifest.files}
    for name in os.listdir(images):
        if name.endswith(_READ) and name not in listed:
            raise damage(name, "is not in the manifest")
    for file in manifest.files:
        try:
            found = _stat(file.name, images)
        except FileNotFoundError:
            raise damage(file.name, "is missing") from None
        if stat.S_ISREG(found.st_mode) and found.st_size != file.size:  # what is none is told when it is opened
            raise damage(file.name, f"has {found.st_size} bytes, {file.size} were written")
    for batch in _batches(manifest.files):
        _compare(images, batch, thorough, damage)


def _compare(
    images: int,
    batch: Sequence[ImageFile],
    thorough: bool,
    damage: Callable[[str, str], ImageDamagedError],
) -> None:
    with contextlib.ExitStack() as opened:
        files = []
        for file in batch:
            try:
                fd, size = _opened(file.name, images, opened)
            except (OSError, UnsafePathError) as error:
                if isinstance(error, OSError) and error.errno in PASSING:
                    raise OutOfResourcesError(path=file.name, problem=error.strerror) from error
                raise damage(file.name, f"cannot be opened: {error}") from error
            if size != file.size:
                raise damage(file.name, f"has {size} bytes, {file.size} were written")
            files.append((fd, size))
        cores = opened.enter_context(ThreadPoolExecutor(hashing.threads()))
        try:
            hashes = hashing.digests(files, [hashing.BLAKE3 if thorough else hashing.XXH3], cores)
        except OSError as error:
            if error.errno in PASSING:
                raise OutOfResourcesError(path="the images", problem=error.strerror) from error
            raise damage("", f"cannot be read: {error}") from error
        for file, (digest,) in zip(batch, hashes, strict=True):
            if digest != (file.blake3 if thorough else file.xxh3):
                raise damage(file.name, "its content has changed since it was written (hashes differ)")
