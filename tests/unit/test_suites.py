"""The suites' runner: nothing that did not pass is taken for passed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import suites
from suites import Run, Suite

PASSES, FAILS = Suite("passes", ("-c", "")), Suite("fails", ("-c", "raise SystemExit(1)"))


def lane(run: Run, *of: Suite) -> None:
    """In a thread, as main does; what ends it is printed and forgotten."""
    thread = threading.Thread(target=run.lane, args=(of,), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_a_lane_goes_on_after_a_failure_and_names_it() -> None:
    run = Run()
    lane(run, PASSES, FAILS, PASSES)
    assert run.failed == ["fails"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lane_that_breaks_has_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: object, **more: object) -> None:
        raise OSError("no more processes")

    run = Run()
    monkeypatch.setattr(subprocess, "Popen", refused)
    lane(run, PASSES, Suite("next", ("-c", "")))
    assert run.failed == ["passes", "next"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_suite_whose_lines_nobody_reads_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(self: Run, line: str) -> None:
        raise BrokenPipeError

    run = Run()
    monkeypatch.setattr(Run, "say", closed)
    lane(run, Suite("loud", ("-c", "print('a line of a test\\n' * 100000)")))
    assert run.failed == ["loud"]


def test_a_suite_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(suites, "SUITE_SECONDS", 0.2)
    monkeypatch.setattr(suites, "GRACE_SECONDS", 20.0)
    run = Run()
    lane(run, Suite("hangs", ("-c", "import time; time.sleep(600)")))
    assert run.failed == ["hangs"]
    assert "hangs: not done within 0.2 s" in capsys.readouterr().out
    assert not run.running


def test_the_whole_fails_when_a_lane_breaks() -> None:
    broken = "suites.lanes = lambda junit: [[suites.Suite('nobody', (), ('/nonexistent/program',))]]"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, suites; {broken}; sys.exit(suites.main([]))"],
        cwd=Path(suites.__file__).parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "failed: nobody" in done.stderr
