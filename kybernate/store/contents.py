"""The files of one checkpoint: taken down at commit, compared before a restore.

Both look at a flat folder of regular files. What is no regular file is refused at commit and damage at a check.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kybernate.store import hashing
from kybernate.store.errors import ImageDamagedError, StoreFailedError, UnsafePathError
from kybernate.store.paths import open_file
from kybernate.store.types import ImageFile, Manifest

# These say nothing of the file: the next try may find it whole.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
_READ = (
    ".img",
    ".tar",
    ".json",
)  # what a restore reads; CRIU's notes of the dump, as stats-dump, come after the commit
_FSYNCS = 8  # at once: they share the journal's commits


def record(images: int) -> tuple[ImageFile, ...]:
    """Hash all files of the folder `images` (a descriptor) and bring them to the disk.

    The disk writes while the cores hash: both wait for the same bytes, neither for the other.
    Raises OSError, UnsafePathError, StoreFailedError for a file that somebody still writes to.
    """
    names = sorted(os.listdir(images))
    with contextlib.ExitStack() as opened:
        files = []
        for name in names:
            fd, size = open_file(name, images)
            opened.callback(os.close, fd)
            files.append((fd, size))
        disk = opened.enter_context(ThreadPoolExecutor(_FSYNCS))
        cores = opened.enter_context(ThreadPoolExecutor(hashing.threads()))
        largest_first = sorted(files, key=lambda file: -file[1])
        syncing = [disk.submit(os.fsync, fd) for fd, _ in largest_first]
        hashes = hashing.digests(files, [hashing.XXH3, hashing.BLAKE3], cores)
        for sync in syncing:
            sync.result()
        for name, (fd, size) in zip(names, files, strict=True):
            if os.fstat(fd).st_size != size:
                raise StoreFailedError(path=name, problem="grew during the commit: somebody still writes to it")
        return tuple(ImageFile(n, size, *both) for n, (_, size), both in zip(names, files, hashes, strict=True))


def verify(images: int, manifest: Manifest, thorough: bool, damage: Callable[[str, str], ImageDamagedError]) -> None:
    """Compare the folder `images` with what was recorded; `damage(file name, problem)` makes the error to raise.

    Names and lengths come first, for they cost nothing: a missing or short file is found in under a millisecond.
    """
    listed = {file.name for file in manifest.files}
    for name in os.listdir(images):
        if name.endswith(_READ) and name not in listed:
            raise damage(name, "is not in the manifest")
    with contextlib.ExitStack() as opened:
        files = []
        for file in manifest.files:
            try:
                fd, size = open_file(file.name, images)
            except FileNotFoundError:
                raise damage(file.name, "is missing") from None
            except OSError as error:
                if error.errno in _PASSING:
                    raise StoreFailedError(path=file.name, problem=f"cannot be opened now: {error.strerror}") from error
                raise damage(file.name, f"cannot be opened: {error}") from error
            except UnsafePathError as error:
                raise damage(file.name, f"cannot be opened: {error}") from error
            opened.callback(os.close, fd)
            if size != file.size:
                raise damage(file.name, f"has {size} bytes, {file.size} were written")
            files.append((fd, size))
        cores = opened.enter_context(ThreadPoolExecutor(hashing.threads()))
        try:
            hashes = hashing.digests(files, [hashing.BLAKE3 if thorough else hashing.XXH3], cores)
        except OSError as error:
            raise damage("", f"cannot be read: {error}") from error
        for file, (digest,) in zip(manifest.files, hashes, strict=True):
            if digest != (file.blake3 if thorough else file.xxh3):
                raise damage(file.name, "its content has changed since it was written (hashes differ)")
