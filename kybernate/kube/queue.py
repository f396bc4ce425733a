"""What is to be looked at: keys, each at most once, each handed to one worker at a time.

                    add                            take
    (unknown) ───────────────> waiting its turn ─────────> at work ──done──> (unknown)
        │  add_after, retry          ^                       │ add: dirty ──done──> waiting its turn
        └────────> later ────────────┘ its time has come     │ add_after, retry: later

- A key that waits is not added twice; one that is added while it is at work comes again afterwards. So no change is
  missed, and no key is at work twice.
- A key that is taken is no longer due later: who works on it says anew when it is to come again. Of several times the
  earliest counts.
- `retry` waits longer each time, with jitter, until `forget`.
- Fair: keys belong to groups (`group`, for example a namespace), and groups take turns. One group with ten thousand
  keys delays another's only key by one.

Nothing here awaits but `get`; times come from `clock`, so that tests need not wait.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from kybernate.kube.backoff import Backoff

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """For one event loop."""

    def __init__(
        self,
        *,
        group: Callable[[K], Hashable] = lambda key: None,
        first_seconds: float = 0.2,
        longest_seconds: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self._clock = clock
        self._backoff = Backoff(first_seconds, longest_seconds)
        self._turns: OrderedDict[Hashable, deque[K]] = OrderedDict()
        self._waiting: set[K] = set()
        self._at_work: set[K] = set()
        self._dirty: set[K] = set()
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._order = 0
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait their turn; neither those at work nor those due later."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is at work; something may be due later."""
        return not self._waiting and not self._at_work

    def add(self, key: K) -> None:
        """`key` is to be looked at now."""
        if key in self._at_work:
            self._dirty.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._turns.setdefault(self._group(key), deque()).append(key)
            self._changed.set()

    def add_after(self, key: K, seconds: float) -> None:
        """`key` is to be looked at in so many seconds, or earlier if something else wants it."""
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._order += 1
            heapq.heappush(self._later, (due, self._order, key))
            self._changed.set()

    def retry(self, key: K, *, at_least: float = 0.0) -> float:
        """`key` failed: look again after its back-off, and not before `at_least` seconds. Returns the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = max(at_least, self._backoff.pause_after(failures))
        self.add_after(key, seconds)
        return seconds

    def failures(self, key: K) -> int:
        """How often in a row `key` failed."""
        return self._failures.get(key, 0)

    def forget(self, key: K) -> None:
        """`key` went well: its next back-off is a short one."""
        self._failures.pop(key, None)

    def take(self) -> K | None:
        """The next key, which is then at work until `done`; None where none waits."""
        self._ripen()
        if not self._turns:
            return None
        group, keys = next(iter(self._turns.items()))
        key = keys.popleft()
        if keys:
            self._turns.move_to_end(group)
        else:
            del self._turns[group]
        self._waiting.discard(key)
        self._due.pop(key, None)
        self._at_work.add(key)
        return key

    async def get(self) -> K:
        """As `take`, and waits for one."""
        while (key := self.take()) is None:
            self._changed.clear()
            pause = self._pause()
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass
        if self._turns:
            self._changed.set()  # another worker may wait for what is left
        return key

    def done(self, key: K) -> None:
        """`key` is no longer at work; if it was added meanwhile, it waits its turn now."""
        self._at_work.discard(key)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    def _ripen(self) -> None:
        """What is due waits its turn. An entry of the heap that `_due` does not name is out of date."""
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)

    def _pause(self) -> float | None:
        """Seconds until the next key is due; None where none is."""
        while self._later and self._due.get(self._later[0][2]) != self._later[0][0]:
            heapq.heappop(self._later)
        return max(0.0, self._later[0][0] - self._clock()) if self._later else None
