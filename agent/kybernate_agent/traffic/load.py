"""How busy a pod is, of a target of requests in flight, in a word that changes rarely: each change is a write. Pure.

    Full  so many requests as the target, or more
    Low   fewer than half as many
    Some  else; and before anything is known

Two thresholds, the target and half of it. Each is crossed upwards by a count that stays above it for RISE_SECONDS, and
downwards by one that stays below for FALL_SECONDS: a burst that is over before anybody could help is not told, and the
pause between two requests is no calm.
"""

from __future__ import annotations

from dataclasses import dataclass

RISE_SECONDS = 1.0
FALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Threshold:
    """Whether it is crossed, and since when (by the caller's clock) each count has said the contrary."""

    crossed: bool
    doubted_since: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Goes into the next fold."""

    half: Threshold = Threshold(True)
    target: Threshold = Threshold(False)

    @property
    def word(self) -> str:
        if self.target.crossed:
            return "Full"
        return "Some" if self.half.crossed else "Low"


def fold_load(load: Load, requests: int, target: int, now: float) -> Load:
    """The load after another look at `now`, which found so many requests in flight."""
    return Load(_fold(load.half, 2 * requests >= target, now), _fold(load.target, requests >= target, now))


def _fold(before: Threshold, above: bool, now: float) -> Threshold:
    if above == before.crossed:
        return Threshold(above)
    since = now if before.doubted_since is None else before.doubted_since
    if now - since >= (RISE_SECONDS if above else FALL_SECONDS):
        return Threshold(above)
    return Threshold(before.crossed, since)
