"""What takes minutes is made once and kept in the cache, by one process at a time.

It is made in a folder `.making-*` and renamed when it is whole, so whatever has that name while nobody holds the lock
is what a killed one left.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path, making: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the one lock of all who build in `folder`; what a killed one left in `making` is gone then."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waits for another build")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for old in making.glob(".making-*"):
            shutil.rmtree(old)
        yield
