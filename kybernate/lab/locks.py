"""Waiting for a lock, with a limit: flock(2) itself waits for ever, and who holds the lock may hang."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable

from kybernate.errors import DeadlineError

_POLL_SECONDS = 0.1


class LockHeldError(DeadlineError):
    """Another process held the lock on {path} for {seconds:g} s. `lsof {path}` names it; end it, or wait for it."""


def take(lock: int, path: object, seconds: float, waits: Callable[[], object] = lambda: None) -> None:
    """Lock the open file `lock`, whose path is for the message; `waits` is called once where another holds it.

    Raises LockHeldError.
    """
    limit = time.monotonic() + seconds
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > limit:
                raise LockHeldError(path=path, seconds=seconds) from None
        if not told:
            waits()
            told = True
        time.sleep(_POLL_SECONDS)
