"""What takes minutes is made once and kept in the cache, by one process at a time.

It is made in a folder `.making-*` and renamed when it is whole, so whatever has that name while nobody holds the lock
is what a killed one left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kybernate.lab import locks

BUILD_SECONDS = 2 * 3600.0
"""How long another build is waited for. All of Kubernetes takes some 12 minutes on 2 cores."""


@contextmanager
def alone(folder: Path, making: Path, say: Callable[[str], None], seconds: float = BUILD_SECONDS) -> Iterator[None]:
    """Hold the one lock of all who build in `folder`; what a killed one left in `making` is gone then.

    Raises LockHeldError.
    """
    path = folder / ".lock"
    with path.open("w") as lock:
        locks.take(lock.fileno(), path, seconds, lambda: say("waits for another build"))
        for old in making.glob(".making-*"):
            shutil.rmtree(old)
        yield


@contextmanager
def plain_modes() -> Iterator[None]:
    """What is made in the block is readable by all and writable by its owner, whatever umask the user has."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)
