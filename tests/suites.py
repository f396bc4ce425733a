"""Run the suites that need root, in lanes side by side: a suite waits most of its time, and three fit a small machine.

    python tests/suites.py [--junit FOLDER]

A lane's suites run one after the other, all of them also when one fails. Each line of a suite is printed as it comes;
lines of several mix, and a report of failures names its tests. On a machine with cgroup v1 the tests with real
containers run once more on v2 (`on_v2.sh`).
SIGINT, SIGTERM and SIGHUP are passed on to what runs, once; it has `GRACE_SECONDS` to clean up. A suite that takes
longer than `SUITE_SECONDS` is ended likewise, and has failed.
Exit status: 0 when all passed, 1 when one failed, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

GRACE_SECONDS = 180.0
LAST_WORDS_SECONDS = 10.0
SUITE_SECONDS = 3000.0
WHOLE_PRODUCT = ("test_product*.py", "test_deploy*.py", "test_demo.py", "test_vm*.py")
API_SERVER_ALONE = ("test_crds.py", "test_kube*.py", "test_controller*.py")
"""Files of tests/cluster; the others are a suite of their own."""
ON_V2 = ("sh", "tests/on_v2.sh")


@dataclass(frozen=True)
class Suite:
    """A command with a name. `words`: what follows Python's name; `inside`: what the whole is run by."""

    name: str
    words: tuple[str, ...]
    inside: tuple[str, ...] = ()


@dataclass
class Run:
    """What runs now, and which suites have not passed so far. `stopped` keeps the next suites from starting."""

    running: set[subprocess.Popen[str]] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lane(self, suites: Sequence[Suite]) -> None:
        """A suite counts as failed until it has passed: what ends this thread in between is no success."""
        self.failed.extend(suite.name for suite in suites)
        for suite in suites:
            began = time.monotonic()
            status = self._run(suite)
            if status is None:
                return
            self.say(f"dev: {suite.name}: {time.monotonic() - began:.0f} s" + (", failed" if status else ""))
            if not status:
                self.failed.remove(suite.name)

    def _run(self, suite: Suite) -> int | None:
        """Its exit status; None where nothing is started any more."""
        with self.lock:
            if self.stopped:
                return None
            print(f"dev: {suite.name}", flush=True)
            child = subprocess.Popen(
                [*suite.inside, sys.executable, *suite.words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
            self.running.add(child)
        reader = threading.Thread(target=self._pass_on, args=(child,), daemon=True)
        reader.start()
        try:
            status = child.wait(SUITE_SECONDS)
        except subprocess.TimeoutExpired:
            status = self._late(suite.name, child)
        reader.join(LAST_WORDS_SECONDS)  # who inherited its output, and outlives it, is not waited for
        with self.lock:
            self.running.discard(child)
        return status

    def _late(self, name: str, child: subprocess.Popen[str]) -> int:
        """End a suite that takes too long, with time to clean up."""
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(child.pid, number)
                child.wait(GRACE_SECONDS)
                break
        self.say(f"dev: {name}: not done within {SUITE_SECONDS:g} s, and ended")
        return 1

    def _pass_on(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(OSError):  # nobody reads it any more; who writes must not wait for that
                self.say(line.rstrip("\n"))

    def say(self, line: str) -> None:
        with self.lock:
            print(line, flush=True)

    def stop(self, number: int) -> None:
        with self.lock:
            self.stopped = True
            for child in self.running:
                with contextlib.suppress(ProcessLookupError):  # it ended by itself at this moment
                    os.killpg(child.pid, number)


def lanes(junit: Path | None) -> list[list[Suite]]:
    """The longest lane first."""

    def suite(name: str, *paths: str, inside: tuple[str, ...] = ()) -> Suite:
        words = ["-m", "pytest", "-p", "no:cacheprovider", "--durations=5"]
        if junit is not None:
            words.append(f"--junitxml={junit}/{name.replace('/', '-').replace(' ', '-')}.xml")
        return Suite(name, (*words, *paths), inside)

    product, api, rest = shares(Path("tests/cluster"), WHOLE_PRODUCT, API_SERVER_ALONE)
    containers = [suite("tests/node", "tests/node")]
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        containers.append(suite("tests/node on cgroup v2", "tests/node", inside=ON_V2))
    return [
        [suite("tests/cluster: product", *product)],
        [suite("tests/cluster: the rest", *rest)],
        [*containers, suite("tests/faults", "tests/faults"), suite("tests/cluster: API server", *api)],
    ]


def shares(folder: Path, *kinds: Sequence[str]) -> list[list[str]]:
    """The folder's test files by kind, each a list of patterns; at the end those of no kind. No file is left out."""
    rest = sorted(folder.glob("test_*.py"))
    found = []
    for patterns in kinds:
        found.append([file for file in rest if any(file.match(pattern) for pattern in patterns)])
        rest = [file for file in rest if file not in found[-1]]
    return [[str(file) for file in files] for files in (*found, rest)]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--junit", type=Path, help="a folder for reports as XML")
    run = Run()
    threads = [threading.Thread(target=run.lane, args=(lane,)) for lane in lanes(parser.parse_args(words).junit)]
    wake = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: wake.set())
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not wake.wait(0.2):
        pass
    if wake.is_set():
        return _interrupted(run, threads)
    if run.failed:
        print(f"dev: failed: {', '.join(run.failed)}", file=sys.stderr)
    return 1 if run.failed else 0


def _interrupted(run: Run, threads: Sequence[threading.Thread]) -> int:
    limit = time.monotonic() + GRACE_SECONDS
    run.stop(signal.SIGINT)
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))
    run.stop(signal.SIGKILL)
    return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
