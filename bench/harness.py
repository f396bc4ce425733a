"""What every benchmark needs: rows, a private machine, the command line.

A row holds one figure against another (see the package's docstring). `measured` gives a benchmark a folder on disk and
a mount namespace of its own, one benchmark at a time on the machine, and takes everything away again.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from bench import machine
from kybernate.errors import ExternalError, KybernateError, RefusedError
from kybernate.lab import Containerd
from kybernate.lab.images import cache
from kybernate.lab.process import argv_of, end, hierarchies, pids, run
from kybernate.lab.remains import unmount_below

BENCHMARKS = ("wake", "park", "overhead", "controller")
ROOT = Path("/var/tmp/kybernate-bench")
"""On a disk, fixed: a run that was killed is cleaned up by the next one."""

_CLONE_NEWNS = 0x00020000


class BusyError(RefusedError):
    """Another benchmark runs on this machine (it holds a lock on {path}). Two at a time would measure each other."""


class NotRootError(RefusedError):
    """Benchmarks run containers and need root."""


class NamespaceError(ExternalError):
    """A mount namespace of its own was refused: {reason}"""


@dataclass(frozen=True)
class Row:
    quantity: str
    value: float
    unit: str
    against: float | Mapping[str, Any]
    ratio: float
    bar: float
    holds: bool


def limit(quantity: str, value: float, unit: str, most: float) -> Row:
    """A row against a limit in the value's own unit; the bar is a ratio of 1."""
    value = round(value, 3)
    return Row(quantity, value, unit, most, round(value / most, 3), 1.0, value <= most)


def compared(quantity: str, ours: Sequence[float], name: str, others: Mapping[str, Sequence[float]], bar: float) -> Row:
    """A row of medians, in ms, against those of `name`; `others` has every single run of everything beside ours."""
    runs = {"kybernate": ours, **others}
    medians = {who: round(statistics.median(values), 1) for who, values in runs.items()}
    detail = {
        "value": medians[name],
        "name": name,
        "medians": medians,
        "runs": {who: [round(value, 1) for value in values] for who, values in runs.items()},
    }
    ratio = medians["kybernate"] / medians[name]
    return Row(quantity, medians["kybernate"], "ms", detail, round(ratio, 3), bar, ratio <= bar)


def command(arguments: Sequence[str], describe: str, measure: Callable[[Path], list[Row]]) -> int:
    """The command line of one benchmark: measure, print the table, write the files. Returns the exit code.

    0 when it was measured, whether the bars hold or not: the rows say that.
    """
    parser = argparse.ArgumentParser(prog="bench", description=describe.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args(arguments)
    target = options.json.absolute() if options.json else None
    try:
        with measured() as root:
            rows = measure(root)
            facts = machine.facts()
    except KybernateError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    print(table(rows))
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        target.with_suffix(".machine.json").write_text(json.dumps(facts, indent=1) + "\n")
    return 0


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| quantity | value | against | ratio | bar | holds |", "|---|---|---|---|---|---|"]
    for row in rows:
        against = f"{row.against:g}" if isinstance(row.against, int | float) else _medians(row.against)
        cells = [row.quantity, f"{row.value:g} {row.unit}", against, f"{row.ratio:g}", f"{row.bar:g}"]
        lines.append("| " + " | ".join([*cells, "yes" if row.holds else "**no**"]) + " |")
    return "\n".join(lines)


def _medians(against: Mapping[str, Any]) -> str:
    return ", ".join(f"{who} {value:g}" for who, value in against["medians"].items() if who != "kybernate")


def note(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def measured() -> Iterator[Path]:
    """An empty folder on disk and a private mount namespace for one benchmark; both are gone afterwards.

    Raises NotRootError, BusyError, NamespaceError.
    """
    if os.geteuid():
        raise NotRootError
    lock = os.open(ROOT.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(path=ROOT.parent) from error
        signal.signal(signal.SIGTERM, _ended)
        _private_mounts()
        _sweep()
        ROOT.mkdir(mode=0o711)
        try:
            _peer_mounts(ROOT / "var-lib")
            yield ROOT
        finally:
            _sweep()
    finally:
        os.close(lock)


def lab(launcher: Path | None = None) -> Containerd:
    """The containerd of all benchmarks: one place, so that each run finds what a killed one left."""
    return Containerd(ROOT / "containerd", "kyb-bench", launcher=launcher)


def _sweep() -> None:
    """End and remove all that a benchmark makes, of this run or of one that was killed."""
    ours = (f"{ROOT}/", f"{cache() / 'bench'}/")
    end(lambda: {pid for pid in pids() if any(word.startswith(ours) for word in argv_of(pid))})
    lab().stop()
    for path in (path for root in hierarchies() for path in root.glob("kybernate-bench-*")):
        with contextlib.suppress(OSError):
            path.rmdir()
    unmount_below(Path("/var/lib"))
    unmount_below(ROOT)
    shutil.rmtree(ROOT, ignore_errors=True)


def _ended(number: int, frame: object) -> NoReturn:
    """SIGTERM unwinds as Ctrl-C does, so that everything is given back."""
    raise SystemExit(128 + number)


def _private_mounts() -> None:
    """Our own mount namespace, /run in memory in it. What is mounted here ends with the processes that are in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise NamespaceError(reason=os.strerror(ctypes.get_errno()))
    run(["mount", "--make-rprivate", "/"])
    run(["mount", "-t", "tmpfs", "-o", "mode=755,size=4g", "tmpfs", "/run"])


def _peer_mounts(upper: Path) -> None:
    """zeropod's fixed places: /var/lib/zeropod, on our disk; /var/log/pods; bpffs. Nothing of it reaches the host."""
    for folder in (upper / "upper", upper / "work", upper / "zeropod"):
        folder.mkdir(parents=True)
    options = f"lowerdir=/var/lib,upperdir={upper}/upper,workdir={upper}/work"
    run(["mount", "-t", "overlay", "-o", options, "overlay", "/var/lib"])
    Path("/var/lib/zeropod").mkdir(exist_ok=True)
    run(["mount", "--bind", upper / "zeropod", "/var/lib/zeropod"])
    run(["mount", "-t", "tmpfs", "tmpfs", "/var/log"])
    if not Path("/sys/fs/bpf/zeropod_maps").exists():
        run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"])
