"""`doctor` on a machine where the other tests of this folder put containers to sleep: nothing may be called failed."""

from __future__ import annotations

import json
import subprocess
import sys

from kybernate.cli.netfilter import netfilter

TOPICS = {"permissions", "kernel", "criu", "runc", "kernel feature cache", "containerd", "cgroups", "netfilter", "disk"}


def test_doctor_calls_this_machine_ready() -> None:
    command = [sys.executable, "-m", "kybernate.cli", "doctor", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = json.loads(done.stdout)
    assert [check for check in found if check["status"] == "failed"] == []
    assert ({check["check"] for check in found}, done.returncode) == (TOPICS, 0)


def test_the_try_leaves_no_rule_behind() -> None:
    def rules() -> str:
        return subprocess.run(["iptables-save", "-t", "mangle"], capture_output=True, text=True, check=True).stdout

    before = [line for line in rules().splitlines() if not line.startswith("#")]
    assert [check.status for check in netfilter()] == ["ok", "ok", "ok"]
    assert [line for line in rules().splitlines() if not line.startswith("#")] == before
