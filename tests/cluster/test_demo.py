"""The quick start of the README, as `./dev demo --cluster` runs it, from images and manifests as they are deployed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kybernate.lab.process import argv_of, pids

NAME = f"kybcluster-{os.getpid()}-demo"


def traces() -> list[str]:
    """What on this machine still names the demo's cluster."""
    lines = [" ".join(argv_of(pid)) for pid in pids() if pid != os.getpid()]
    lines += Path("/proc/self/mountinfo").read_text().splitlines()
    lines += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{NAME}")]
    lines += [str(path) for path in Path("/sys/class/net").iterdir()]
    return [line for line in lines if NAME in line]


def test_the_quick_start_shows_the_whole_path_and_leaves_nothing() -> None:
    argv = [sys.executable, "-m", "kybernate.lab.demo", "--cluster", "--name", NAME]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("kubectl apply", "cold start", "woken from RAM", "is Running and ready", "woken from NVME"):
        assert word in done.stdout
    assert not Path("/var/tmp", NAME).exists()
    assert traces() == []
