"""How long it takes to put 64 MiB to sleep on disk, beside what runc and the disk need.

Ours is the whole verb, as it was ordered over the API: freeze, dump, hash, sync, commit. Beside it, in turns:
`runc checkpoint` of a container like ours, with the same CRIU options, into a tmpfs, and a copy of the images onto the
disk with fsync. Both run again before each turn.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from bench import raw
from bench.harness import Row, command, compared, note
from bench.node import node

SIZE_MIB = 64
BAR = 1.3
_AGAINST = "runc checkpoint and durable copy"
_MEMORY = Path("/run/bench-images")
_RUNS = 10
_SETTLE_SECONDS = 0.3


def measure(root: Path) -> list[Row]:
    ours_ms: list[float] = []
    raw_ms: list[float] = []
    with (
        node(root) as ours,
        ours.sleeper("freezer", SIZE_MIB) as sleeper,
        raw.raw_runc(ours.containerd, ours.bundle(sleeper.name), 0) as runc,
    ):
        for number in range(_RUNS + 1):
            for turn in (number, number + 1):
                os.sync()
                time.sleep(_SETTLE_SECONDS)
                if turn % 2:
                    ours_ms.append(sleeper.park())
                    sleeper.wake()
                else:
                    raw_ms.append(runc.park_durably(_MEMORY))
                    runc.wake()
            note(f"park: kybernate {ours_ms[-1]:.0f} ms, {_AGAINST} {raw_ms[-1]:.0f} ms")
    return [compared(f"park {SIZE_MIB} MiB", ours_ms[1:], _AGAINST, {_AGAINST: raw_ms[1:]}, BAR)]


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:], __doc__ or "", measure))
