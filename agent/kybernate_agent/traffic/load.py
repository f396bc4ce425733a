"""How busy a pod is, of a target of requests in flight, in a word that changes rarely: each change is a write. Pure.

    Full  as many as the target, or more; until there are fewer than three quarters of it
    Low   fewer than a quarter for CALM_SECONDS; until there are three eighths
    Some  else
    ""    nobody has looked for as long as it takes: an agent that begins anew, with a pod that is awake

What is compared is the mean of the last WINDOW_MS. Means of several pods add up to the mean of all, so what their
words say together is true of all of them together; the controller builds on that (its target.py has the argument). With
"so many for a while" two pods that have one request in turn would both be Full. Short requests are the tremble of a
mean, and no news. A count is taken for BURST times the target at most: four times as many as are wanted are told
after a quarter of the window, and a burst that is over sooner is no reason to wake somebody. Before a pod was awake
there was calm.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_MS = 10_000
CALM_SECONDS = 10.0
BURST = 4
LONGEST_MS = 1000
"""For no longer than this a count stands for the time before it: who looked late saw nothing of that time."""


@dataclass(frozen=True, slots=True)
class Load:
    """Goes into the next fold; of a pod that has woken at first. Counts are (ms, requests): for how long so many."""

    word: str = "Some"
    counts: tuple[tuple[int, int], ...] = ()
    at: float = 0.0
    calm_since: float | None = None


UNKNOWN = Load(word="")


def fold_load(load: Load, requests: int, target: int, now: float) -> Load:
    """The load after another look at `now`, which found so many requests in flight."""
    counts = _window(load, min(requests, BURST * target), now)
    # In whole numbers: of a mean that is the target exactly.
    seen_ms = sum(ms for ms, _ in counts)
    amount, share = sum(ms * count for ms, count in counts), target * max(seen_ms, WINDOW_MS)
    calm_since = (now if load.calm_since is None else load.calm_since) if 4 * amount < share else None
    word = "Some" if load.word or seen_ms >= WINDOW_MS else ""
    if amount >= share or (load.word == "Full" and 4 * amount >= 3 * share):
        word = "Full"
    elif load.word == "Low":
        word = "Low" if 8 * amount < 3 * share else "Some"
    elif calm_since is not None and now - calm_since >= CALM_SECONDS:
        word = "Low"
    return Load(word, counts, now, calm_since)


def _window(load: Load, requests: int, now: float) -> tuple[tuple[int, int], ...]:
    """Counts of the last WINDOW_MS, and not more."""
    passed = min(max(0, round((now - load.at) * 1000)), LONGEST_MS) if load.at else 0
    counts = (*load.counts, (passed, requests))
    while sum(ms for ms, _ in counts[1:]) >= WINDOW_MS:
        counts = counts[1:]
    return counts
