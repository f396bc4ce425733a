"""What we cost while nothing happens: the hook for others' containers, keepers and the agent with ten sleepers.

The hook: `ctr run --rm` of /bin/true with runc and with our launcher, in turns; the value is the difference of the
medians. Keepers and agent: ten instances, half of them asleep in RAM, half on NVMe, each parked and woken once before;
the value for keepers is that of the worst one. CPU time is what the scheduler counted, over an idle span.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from pathlib import Path

from bench import freezer
from bench.harness import Row, command, limit, note
from bench.node import Node, Sleeper, await_state, node

HOOK_MS = 40.0
KEEPER_RESIDENT_MIB = 12.0
KEEPER_PRIVATE_MIB = 6.0
KEEPER_CPU_PERCENT = 0.01  # "none": a ratio needs a limit above zero, and this is a tenth of a millisecond a second
AGENT_RESIDENT_MIB = 100.0
AGENT_CPU_PERCENT = 1.0
_HOOK_RUNS = 25
_SLEEPERS = 10
_IDLE_SECONDS = 30.0


def measure(root: Path) -> list[Row]:
    with node(root) as ours:
        rows = [_hook(ours)]
        with contextlib.ExitStack() as stack:
            sleepers = [stack.enter_context(ours.sleeper(f"freezer-{number}", 1)) for number in range(_SLEEPERS)]
            keepers = [ours.keeper(sleeper.name) for sleeper in sleepers]
            for number, sleeper in enumerate(sleepers):
                _asleep(sleeper, _state(number))
            note(f"{_SLEEPERS} sleepers; idle for {_IDLE_SECONDS:g} s")
            time.sleep(5)
            rows += _idle(keepers, ours.agent.pid)
            for number, sleeper in enumerate(sleepers):
                await_state(ours.client, sleeper.name, _state(number), seconds=0)
            return rows


def _hook(ours: Node) -> Row:
    image = freezer.image().name
    spent: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * (_HOOK_RUNS + 1)):
        with_hook = number % 2 == (number // 2) % 2  # the order changes from pair to pair
        words = ["run", "--rm", "--null-io", "--cgroup", "/kybernate-bench-true"]
        words += ["--runc-binary", str(ours.launcher)] if with_hook else []
        began = time.perf_counter()
        ours.containerd.ctr(*words, image, f"true-{number}", "/bin/true")
        spent[with_hook].append((time.perf_counter() - began) * 1000)
    medians = {with_hook: statistics.median(values[1:]) for with_hook, values in spent.items()}
    note(f"ctr run --rm of /bin/true: runc {medians[False]:.1f} ms, with the hook {medians[True]:.1f} ms")
    return limit("hook on an unmanaged container", medians[True] - medians[False], "ms", HOOK_MS)


def _state(number: int) -> str:
    return "Parked" if number % 2 else "Suspended"


def _asleep(sleeper: Sleeper, state: str) -> None:
    sleeper.park()
    sleeper.wake()
    if state == "Parked":
        sleeper.park()
    else:
        sleeper.suspend()


def _idle(keepers: list[int], agent: int) -> list[Row]:
    before = {pid: run_seconds(pid) for pid in (*keepers, agent)}
    time.sleep(_IDLE_SECONDS)
    cpu = {pid: (run_seconds(pid) - spent) / _IDLE_SECONDS * 100 for pid, spent in before.items()}
    memory = {pid: memory_mib(pid) for pid in (*keepers, agent)}
    return [
        limit("keeper resident", max(memory[pid][0] for pid in keepers), "MiB", KEEPER_RESIDENT_MIB),
        limit("keeper private", max(memory[pid][1] for pid in keepers), "MiB", KEEPER_PRIVATE_MIB),
        limit("keeper CPU", max(cpu[pid] for pid in keepers), "% of a core", KEEPER_CPU_PERCENT),
        limit("agent resident", memory[agent][0], "MiB", AGENT_RESIDENT_MIB),
        limit("agent CPU", cpu[agent], "% of a core", AGENT_CPU_PERCENT),
    ]


def run_seconds(pid: int) -> float:
    """CPU time of all threads of a process. Source: /proc/pid/task/*/schedstat, nanoseconds on the CPU."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident and private memory of a process. Source: /proc/pid/smaps_rollup, kB."""
    kib = {"Rss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in kib:
            kib[name] = int(value.split()[0])
    return kib["Rss"] / 1024, (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:], __doc__ or "", measure))
