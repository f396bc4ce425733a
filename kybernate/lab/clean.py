"""`python -m kybernate.lab.clean`: take away what a demo, a cluster or a test session left, running or not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from kybernate.errors import KybernateError
from kybernate.lab.cluster import Cluster
from kybernate.lab.containerd import Containerd
from kybernate.lab.node import LabNode, alone

DEMO = "kybernate-demo"
TESTS = "kybtest-"
"""Test sessions name their labs so, followed by their pid; data below /var/tmp, the rest below /run."""
CLUSTER = Path("/var/tmp/kybernate-cluster")
"""The cluster of `./dev cluster`."""
CLUSTER_DEMO = Path("/var/tmp/kybernate-cluster-demo")
TEST_CLUSTERS = "kybcluster-"
"""Test sessions name their clusters so, followed by their pid and a number; folders below /var/tmp."""


def remove_dead_tests() -> list[str]:
    """The labs of test sessions that live no more; their names."""
    names = {path.name for path in Path("/var/tmp").glob(f"{TESTS}*")}
    dead = sorted(name for name in names if not Path("/proc", name.removeprefix(TESTS)).exists())
    for name in dead:
        Containerd(Path("/var/tmp", name), name).stop()
        for folder in Path("/run").glob(f"{name}.*"):
            shutil.rmtree(folder, ignore_errors=True)
    return dead


def remove_dead_clusters() -> list[str]:
    """The clusters of test sessions that live no more; their names."""
    names = sorted(path.name for path in Path("/var/tmp").glob(f"{TEST_CLUSTERS}*"))
    dead = [name for name in names if not Path("/proc", name.removeprefix(TEST_CLUSTERS).partition("-")[0]).exists()]
    for name in dead:
        Cluster(Path("/var/tmp", name), name).down()
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
        for folder, what in ((CLUSTER, "the cluster"), (CLUSTER_DEMO, "the cluster of the demo")):
            if folder.exists():
                Cluster(folder, folder.name).down()
                print(f"removed {what}")
        for name in remove_dead_clusters():
            print(f"removed the test cluster {name}")
    except KybernateError as error:
        print(f"clean: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
