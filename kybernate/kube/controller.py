"""The loop of a controller: take a key, look, decide, do; again when something changed, failed, or time has come.

`reconcile(key)` reads what it needs (from caches), brings the world one step nearer to what is wanted, and returns None
or the seconds after which it wants to be called again. It is called for a key never twice at once, and again after
every change that was added while it ran: so it may be written as if it were alone with its object. It must bear to be
called too often, and killed at any point.

A reconcile that raises is tried again after a back-off; one that takes longer than its deadline is cancelled and
counts as failed. A conflict is no fault (somebody was faster, the cache will tell), so it is logged lower.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from kybernate.kube.errors import ApiError, ConflictError
from kybernate.kube.queue import WorkQueue

K = TypeVar("K", bound=Hashable)
Reconcile = Callable[[K], Awaitable[float | None]]

DEADLINE_SECONDS = 120.0

log = logging.getLogger(__name__)


async def run_loop(
    queue: WorkQueue[K], reconcile: Reconcile[K], workers: int, *, deadline_seconds: float = DEADLINE_SECONDS
) -> None:
    """Reconcile the keys of `queue` with so many workers; until cancelled, which cancels what is at work too."""
    async with asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(_work(queue, reconcile, deadline_seconds), name=f"worker {number}")


async def _work(queue: WorkQueue[K], reconcile: Reconcile[K], deadline_seconds: float) -> None:
    while True:
        key = await queue.get()
        try:
            await _once(queue, reconcile, key, deadline_seconds)
        finally:
            queue.done(key)


async def _once(queue: WorkQueue[K], reconcile: Reconcile[K], key: K, deadline_seconds: float) -> None:
    try:
        async with asyncio.timeout(deadline_seconds):
            again = await reconcile(key)
    except Exception as error:
        wait = error.retry_after if isinstance(error, ApiError) else None
        seconds = queue.retry(key, at_least=wait or 0.0)
        _log(key, error, seconds, queue.failures(key))
    else:
        queue.forget(key)
        if again is not None:
            queue.add_after(key, again)


def _log(key: Hashable, error: Exception, seconds: float, failures: int) -> None:
    if isinstance(error, ConflictError):
        log.info("%s: %s; again in %.1f s", key, error, seconds)
    elif isinstance(error, TimeoutError) and not str(error):
        log.error("%s: took too long and was stopped; try %d, again in %.1f s", key, failures, seconds)
    else:
        log.error(
            "%s: %s; try %d, again in %.1f s",
            key,
            error,
            failures,
            seconds,
            exc_info=None if isinstance(error, ApiError) else error,
        )
