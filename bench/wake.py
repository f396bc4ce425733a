"""How long a caller waits for a sleeper: connect to full reply, from NVMe and from RAM.

The workload is zeropod's own freezer at 1, 64, 256 and 1024 MiB. From NVMe four take turns, in an order that rotates:
kybernate, zeropod, `runc restore` of a container like ours, `criu restore` of a bare process. Each wakes, is checked
for its state, and is put to sleep again, until what was written is on disk; then the next one. The first round warms
up and does not count.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import raw, zeropod
from bench.harness import Row, command, compared, limit, note
from bench.node import Node, node

SIZES_MIB = {1: 0.7, 64: 0.8, 256: 0.9, 1024: 1.3}
"""Size of the workload: the ratio to zeropod that is allowed."""
FROM_RAM_MS = 15.0
_RUNS = 10
_SETTLE_SECONDS = 0.3


@dataclass(frozen=True)
class Turn:
    """Who takes turns: `wake` gives milliseconds; `park` returns when it sleeps again."""

    name: str
    wake: Callable[[], float]
    park: Callable[[], object]


def measure(root: Path) -> list[Row]:
    rows, from_ram = [], {}
    with node(root) as ours:
        for number, (size_mib, bar) in enumerate(SIZES_MIB.items()):
            runs, from_ram[size_mib] = _size(ours, size_mib, number * 3)
            others = {name: values for name, values in runs.items() if name != "kybernate"}
            quantity = f"wake from NVME {size_mib} MiB"
            rows.append(compared(quantity, runs["kybernate"], zeropod.NAME, others, bar))
    slowest = max(statistics.median(values) for values in from_ram.values())
    return [*rows, limit("wake from RAM", slowest, "ms", FROM_RAM_MS)]


def _size(ours: Node, size_mib: int, number: int) -> tuple[dict[str, list[float]], list[float]]:
    """All runs from NVMe, by whose they are, and ours from RAM; in ms. `number` is the first of three free ones."""
    with ours.sleeper(f"freezer-{size_mib}", size_mib) as sleeper:
        from_ram = [_from_ram(sleeper.suspend, sleeper.wake) for _ in range(_RUNS + 1)][1:]
        note(f"from RAM, {size_mib} MiB: {_shown(from_ram)}")
        with _others(ours, sleeper.name, size_mib, number) as others:
            turns = [Turn("kybernate", sleeper.wake, sleeper.park), *others]
            runs = _rotate(turns)
    note(f"from NVME, {size_mib} MiB: " + ", ".join(f"{name} {_shown(values)}" for name, values in runs.items()))
    return runs, from_ram


@contextlib.contextmanager
def _others(ours: Node, name: str, size_mib: int, number: int) -> Iterator[list[Turn]]:
    lab = ours.containerd
    with (
        zeropod.peer(lab, size_mib, number) as peer,
        raw.raw_runc(lab, ours.bundle(name), number + 1) as runc,
        raw.raw_criu(lab, size_mib, number + 2) as criu,
    ):
        yield [
            Turn(zeropod.NAME, peer.wake, peer.await_dump),
            Turn(raw.RUNC_NAME, runc.wake, runc.park),
            Turn(raw.CRIU_NAME, criu.wake, criu.park),
        ]


def _rotate(turns: list[Turn]) -> dict[str, list[float]]:
    """Everybody asleep, then rounds in which each wakes once while the others sleep."""
    for turn in turns:
        if turn.name != zeropod.NAME:  # it fell asleep by itself
            turn.park()
    runs: dict[str, list[float]] = {turn.name: [] for turn in turns}
    for number in range(_RUNS + 1):
        for step in range(len(turns)):
            turn = turns[(number + step) % len(turns)]
            _settle()
            runs[turn.name].append(turn.wake())
            turn.park()
    return {name: values[1:] for name, values in runs.items()}


def _from_ram(suspend: Callable[[], float], wake: Callable[[], float]) -> float:
    suspend()
    time.sleep(_SETTLE_SECONDS)
    return wake()


def _settle() -> None:
    """What was dumped reaches the disk before the next one is measured; it stays in the page cache."""
    os.sync()
    time.sleep(_SETTLE_SECONDS)


def _shown(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ms ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:], __doc__ or "", measure))
