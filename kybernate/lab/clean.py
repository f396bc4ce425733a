"""`python -m kybernate.lab.clean`: take away what a demo, a cluster or a test session left, running or not."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from kybernate.errors import KybernateError
from kybernate.lab.cluster import Cluster
from kybernate.lab.cluster.machine import cgroup_folders
from kybernate.lab.containerd import Containerd
from kybernate.lab.node import LabNode, alone
from kybernate.lab.process import hierarchies, run

DEMO = "kybernate-demo"
TESTS = "kybtest-"
"""Test sessions name their labs so, followed by their pid; data below /var/tmp, the rest below /run."""
CLUSTER = Path("/var/tmp/kybernate-cluster")
"""The cluster of `./dev cluster`."""
CLUSTER_DEMO = Path("/var/tmp/kybernate-cluster-demo")
TEST_CLUSTERS = "kybcluster-"
"""Test sessions name their clusters so, followed by their pid and a number; folders below /var/tmp."""
TEST_DEMOS = "kybdemo-"
"""Demos that tests start, and their pid; folders as of any demo."""
API_SERVERS = "kybernate-apiserver-"
"""Folders of API servers that tests start, and their pid; their processes end with it."""
TRAFFIC = "kyb-traffic-"
"""Network namespaces of tests, and their pid."""
ON_V2 = "kybernate-on-v2-"
"""Cgroups of tests/on_v2.sh, and its pid."""


def dead(names: Iterable[str], prefix: str) -> list[str]:
    """Those that begin with `prefix` and the pid of a process that lives no more, whatever follows it."""
    pids = {name: name.removeprefix(prefix).partition("-")[0] for name in set(names) if name.startswith(prefix)}
    return sorted(name for name, pid in pids.items() if pid.isdecimal() and not Path("/proc", pid).exists())


def _names(*folders: str | Path) -> Iterator[str]:
    for folder in map(Path, folders):
        if folder.is_dir():
            yield from (path.name for path in folder.iterdir())


def remove_dead_tests() -> list[str]:
    """The labs of test sessions that live no more; their names."""
    names = dead(_names("/var/tmp"), TESTS)
    for name in names:
        Containerd(Path("/var/tmp", name), name).stop()
        for folder in Path("/run").glob(f"{name}.*"):
            shutil.rmtree(folder, ignore_errors=True)
    return names


def remove_dead_clusters() -> list[str]:
    """The clusters of test sessions that live no more; their names."""
    names = dead(_names("/var/tmp"), TEST_CLUSTERS)
    for name in names:
        Cluster(Path("/var/tmp", name), name).down()
    return names


def remove_dead_api_servers() -> list[str]:
    """What API servers of test sessions that live no more left; the names of the folders."""
    names = dead(_names(tempfile.gettempdir()), API_SERVERS)
    for name in names:
        shutil.rmtree(Path(tempfile.gettempdir(), name), ignore_errors=True)
    return names


def _remove_dead_demos() -> list[str]:
    names = dead(_names("/var/lib", "/run"), TEST_DEMOS)
    for name in names:
        _down(LabNode(name), name)
    return names


def _remove_dead_networks() -> list[str]:
    names = dead(_names("/run/netns"), TRAFFIC)
    for name in names:
        run(["ip", "netns", "delete", name])
    return names


def _remove_dead_cgroups() -> list[str]:
    """A group with a process in it is left: its owner may live in other process ids than ours."""
    names = []
    for name in dead(_names(*hierarchies()), ON_V2):
        folders = list(cgroup_folders(name))
        if not any((folder / "cgroup.procs").read_text() for folder in folders):
            for folder in folders:
                folder.rmdir()
            names.append(name)
    return names


def _remove_demo() -> list[str]:
    demo = LabNode(DEMO)
    return _down(demo, DEMO) if demo.exists else []


def remove_cluster(folder: Path) -> list[str]:
    return _down(Cluster(folder, folder.name), folder.name) if folder.exists() else []


def _down(lab: LabNode | Cluster, name: str) -> list[str]:
    """What starts, or is being shown, is somebody's. Raises InUseError."""
    with alone(name):
        lab.down()
    return [name]


STEPS = (
    _remove_demo,
    remove_dead_tests,
    _remove_dead_demos,
    partial(remove_cluster, CLUSTER),
    partial(remove_cluster, CLUSTER_DEMO),
    remove_dead_clusters,
    remove_dead_api_servers,
    _remove_dead_networks,
    _remove_dead_cgroups,
)


def main() -> int:
    """What one step cannot remove keeps the others from nothing."""
    status = 0
    for step in STEPS:
        try:
            for name in step():
                print(f"removed {name}")
        except (KybernateError, OSError) as error:
            print(f"clean: {error}", file=sys.stderr)
            status = status or getattr(error, "exit_code", 1)
    return status


if __name__ == "__main__":
    sys.exit(main())
