"""The agent's clock: what it decides by, and what it writes down of an instance.

Seconds since 1970 as the machine's clock had them when the agent started, and from then on the time that has really
passed, sleep of the machine included. So its times can be read and kept, and a machine's clock that is set, forward or
back, moves none of them. What is compared with times of others, or is to be right in years, is asked of `time.time`.
"""

from __future__ import annotations

import time


def since_boot() -> float:
    """Seconds since the machine started; what the keepers write down. Source: clock_gettime(2), CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


_OFFSET = time.time() - since_boot()


def at(boot_seconds: float) -> float:
    """The moment that long after the machine started, on this clock."""
    return _OFFSET + boot_seconds


def now() -> float:
    return at(since_boot())


STARTED = now()
"""Nothing that an agent before wrote down was later than this, whatever its clock said."""
