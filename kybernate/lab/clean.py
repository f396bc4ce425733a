"""`python -m kybernate.lab.clean`: take away what a demo or a test session left, running or not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from kybernate.errors import KybernateError
from kybernate.lab.containerd import Containerd
from kybernate.lab.node import LabNode, alone

DEMO = "kybernate-demo"
TESTS = "kybtest-"
"""Test sessions name their labs so, followed by their pid; data below /var/tmp, the rest below /run."""


def remove_dead_tests() -> list[str]:
    """The labs of test sessions that live no more; their names."""
    names = {path.name for path in Path("/var/tmp").glob(f"{TESTS}*")}
    dead = sorted(name for name in names if not Path("/proc", name.removeprefix(TESTS)).exists())
    for name in dead:
        Containerd(Path("/var/tmp", name), name).stop()
        for folder in Path("/run").glob(f"{name}.*"):
            shutil.rmtree(folder, ignore_errors=True)
    return dead


def main() -> int:
    try:
        demo = LabNode(DEMO)
        if demo.exists:
            with alone(DEMO):
                demo.down()
            print("removed the demo")
        for name in remove_dead_tests():
            print(f"removed the test lab {name}")
    except KybernateError as error:
        print(f"clean: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
