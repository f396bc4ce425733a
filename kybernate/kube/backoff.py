"""How long to wait before a thing is tried again: longer each time, never the same for two who failed together."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """The n-th pause lies between half of and the whole `first * factor^n` seconds, at most `longest`."""

    first: float = 0.4
    longest: float = 30.0
    factor: float = 2.0
    failures: int = 0
    random: random.Random = field(default_factory=random.Random, repr=False)

    def next(self) -> float:
        """Seconds to wait now; the next ones will be longer."""
        pause = self.pause_after(self.failures)
        self.failures += 1
        return pause

    def pause_after(self, failures: int) -> float:
        """Seconds to wait after so many failures before this one."""
        exponent = min(failures, 64)  # a float has no room for more
        return min(self.longest, self.first * self.factor**exponent) * self.random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It went well: the next pause is a short one."""
        self.failures = 0
