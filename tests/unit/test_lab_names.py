"""Whose folders are removed: only a lab's own, and of the dead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kybernate.lab import clean, cluster_demo, demo
from kybernate.lab.cluster import Cluster
from kybernate.lab.node import InUseError, LabNameError, LabNode, alone, checked

GONE = 4_194_305
"""More than any pid can be (proc_sys_kernel_pid_max(5))."""


@pytest.mark.parametrize("name", ["kybernate-demo", "kybernate-cluster-demo", "kybdemo-12", "kybcluster-12-demo"])
def test_names_of_labs_are_taken(name: str) -> None:
    assert checked(name) == name


@pytest.mark.parametrize(
    "name",
    ["kybernate", "docker", "/srv/data", "../lib/docker", "kybernate-demo/../docker", "kybernate-demo\n", "", "."],
)
def test_a_name_that_others_may_bear_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1)  # nothing is started, also where the name is taken
    with pytest.raises(LabNameError, match="no name of a lab"):
        LabNode(name)
    for show in (demo.run_demo, cluster_demo.run_cluster_demo):
        with pytest.raises(LabNameError):
            show(False, name)


def test_only_what_bears_the_pid_of_a_dead_process_is_dead() -> None:
    mine, gone = f"kybtest-{os.getpid()}", f"kybtest-{GONE}"
    names = [mine, f"{mine}-1", gone, f"{gone}-1", "kybtest-", "kybtest-self", f"kybother-{GONE}", gone]
    assert clean.dead(names, "kybtest-") == [gone, f"{gone}-1"]


def test_what_one_step_cannot_remove_does_not_keep_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_use() -> list[str]:
        raise LabNameError(name="x")

    monkeypatch.setattr(clean, "STEPS", (in_use, lambda: ["the next"]))
    assert clean.main() == LabNameError.exit_code
    assert capsys.readouterr().out == "removed the next\n"


def test_a_cluster_that_somebody_starts_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / f"kybcluster-{os.getpid()}-unit"
    folder.mkdir()
    ended: list[str] = []
    monkeypatch.setattr(Cluster, "down", lambda cluster: ended.append(cluster.name))
    with alone(folder.name), pytest.raises(InUseError, match=folder.name):
        clean.remove_cluster(folder)
    assert ended == []
    assert clean.remove_cluster(folder) == ended == [folder.name]


@pytest.mark.parametrize(("signals", "status"), [("TERM", 143), ("HUP", 129), ("HUP HUP TERM", 129)])
def test_a_signal_ends_a_program_in_good_order(signals: str, status: int) -> None:
    code = (
        "import os, signal\nfrom kybernate.lab.process import end_by_signals\nend_by_signals()\n"
        "try:\n    os.kill(os.getpid(), signal.SIG{})\nfinally:\n    {}\n    print('given back')\n"
    )
    first, *others = signals.split()
    again = "; ".join(f"os.kill(os.getpid(), signal.SIG{name})" for name in others) or "pass"
    argv = [sys.executable, "-c", code.format(first, again)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (status, "given back\n")


def test_a_hangup_that_is_ignored_stays_so() -> None:
    code = (
        "import os, signal\nfrom kybernate.lab.process import end_by_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nend_by_signals()\nos.kill(os.getpid(), signal.SIGHUP)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
