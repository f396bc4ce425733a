"""The store as the agent sees it. `tests/unit/store_suite.py` is what an implementation must pass.

A checkpoint goes through `stage` -> (CRIU writes) -> `commit` -> `check` before each restore -> `retire`. One epoch of
one instance has one writer; different instances may be worked on from different threads at once. All methods block:
call them in threads.

Every method may be cut off at any point by kill -9 or a power cut. What was committed stays, what was not is taken away
by the next `sweep`; there is no third state.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from kybernate.store.errors import ManifestDamagedError
from kybernate.store.types import ImageFile, Manifest, Staging


class Store(Protocol):
    def stage(self, instance: str, epoch: int, needed_bytes: int) -> Staging:
        """An empty folder for a dump of about `needed_bytes`, which count as taken until `commit` or `discard`.

        Idempotent: what an earlier `stage` of the same epoch left is emptied. Do not retry a refusal before something
        has changed. Raises NoRoomError, EpochTakenError, InstanceNameError.
        """
        ...

    def commit(self, staging: Staging, made: dict[str, Any], linked: Sequence[ImageFile] = ()) -> Manifest:
        """Make the files in `staging.images` a checkpoint: hashed, on the disk for good, listed, sealed with the node's
        key.

        What is there now is what is listed: files that appear later do not count (CRIU writes `stats-dump` after
        post-dump). The files keep their inodes, so that CRIU may have them open. `linked` are files that were linked
        from another checkpoint of the store, as its manifest lists them: they are listed as they are there and not
        read; damage to them is for `check` to find, as it was before. Idempotent: the same epoch again, with
        the staging gone, returns the manifest. After an error the staging is as before: retry, or `discard`. Raises
        NoRoomError, StoreFailedError, OutOfResourcesError, UnsafePathError (a link or a folder among the images),
        EpochTakenError.
        """
        ...

    def discard(self, staging: Staging) -> None:
        """Take a staging away, with what was written to it. Idempotent; never touches a committed checkpoint."""
        ...

    def manifests(self, instance: str | None = None) -> list[Manifest]:
        """What is committed and has a true seal, of one instance or of all; of each the newest epoch first.

        Reads no image. Safe to retry. Damaged manifests are left out here and told by `damaged`.
        """
        ...

    def damaged(self, instance: str | None = None) -> list[ManifestDamagedError]:
        """The manifests that `manifests` left out, each as the error that names the file and what is wrong with it."""
        ...

    def check(self, manifest: Manifest, thorough: bool = False) -> None:
        """Every listed file is there, a regular file, has its length and its xxh3-128 (`thorough`: BLAKE3), and no
        other `*.img`, `*.tar` or `*.json` is there. Before every restore: nothing unverified reaches CRIU or is
        unpacked. Changes nothing; safe to retry.

        Raises ImageDamagedError, OutOfResourcesError. Takes 70-80 ms a GiB in page cache on two cores.
        """
        ...

    def images(self, manifest: Manifest) -> Path:
        """The folder with the image files, for CRIU to read."""
        ...

    def retire(self, manifest: Manifest) -> None:
        """Delete a committed checkpoint: gone for all others from the first moment on. Idempotent.

        The caller answers for the rule that nothing goes before its successor has proven to live.
        """
        ...

    def forget(self, instance: str) -> None:
        """Delete all that is committed of an instance, damaged checkpoints too. Idempotent.

        For an instance that has ended for good: its name may come again, with epochs from 1.
        """
        ...

    def sweep(self, in_flight: Collection[tuple[str, int]] = ()) -> list[str]:
        """Take away what killed writers left, but not the stagings of the (instance, epoch) pairs in flight.

        To be called at start and may be called at any time. Idempotent. Returns the names of what was removed.
        """
        ...
