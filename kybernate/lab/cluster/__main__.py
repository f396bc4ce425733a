"""`./dev cluster up|down|status|shell`: a cluster for people, that stays until it is taken down.

up [--nodes N] [--runtime] [--short]    start one, or say how to use the one that is there
down                                    leave nothing of it
load                                    Kybernate's image and those of the examples, onto every node
status                                  its nodes, and the services of each machine
shell NODE [COMMAND...]                 a shell on a node (n1, n2, ...) or on the control plane (cp)
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from kybernate.errors import KybernateError, RefusedError
from kybernate.lab import examples
from kybernate.lab.clean import CLUSTER
from kybernate.lab.cluster.cluster import Cluster, NoClusterError, past_proxies
from kybernate.lab.cluster.control_plane import NAME, SHORT
from kybernate.lab.cluster.machine import ENVIRONMENT, Machine, NotRunningError
from kybernate.lab.node import alone
from kybernate.lab.process import end_by_signals
from kybernate.lab.product_image import product_image


class NotRootError(RefusedError):
    """A cluster needs root: sudo ./dev cluster"""


class Lines:
    """What happens, each line with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {line}", flush=True)


def up(nodes: int, runtime: bool, short: bool) -> None:
    with alone(CLUSTER.name):
        cluster = running()
        if cluster is None:
            say = Lines()
            cluster = Cluster(CLUSTER, CLUSTER.name, nodes=nodes, runtime=runtime, patience=SHORT if short else None)
            cluster.up(say=say)
            say(f"ready: {', '.join(node.name for node in cluster.nodes)}")
        else:
            print("the cluster is up already; `./dev cluster down` ends it")
    print(how_to_use(cluster))


def running() -> Cluster | None:
    """The cluster, if it is there and its control plane runs."""
    try:
        cluster = Cluster.open(CLUSTER)
    except NoClusterError:
        return None
    return cluster if cluster.control_plane.running else None


def how_to_use(cluster: Cluster) -> str:
    return f"""
Use it, as root:
    export KUBECONFIG={cluster.kubeconfig}
    export PATH=$PATH:{cluster.programs}{past_proxies(cluster.plan)}
    kubectl get nodes
Pods and Services answer this machine by their addresses. Images come from no registry: `./dev cluster load` puts
Kybernate's and the examples' onto the nodes; others are imported into a node, for example
    ./dev cluster shell {cluster.nodes[0].name} ctr -n k8s.io images import FILE.tar
Logs are in {cluster.folder}/*/log. `./dev cluster down` leaves nothing."""


def down() -> None:
    with alone(CLUSTER.name):
        if not CLUSTER.exists():
            raise NoClusterError(folder=CLUSTER)
        Cluster(CLUSTER, CLUSTER.name).down()
    print("the cluster is gone")


def load() -> None:
    cluster, say = Cluster.open(CLUSTER), Lines()
    for build in (product_image, examples.model_server, examples.notebook):
        image = build()
        cluster.load_image(image)
        say(f"loaded {image.name}")


def status() -> None:
    cluster = Cluster.open(CLUSTER)
    for machine in machines(cluster):
        try:
            states = machine.services()
        except NotRunningError:
            print(f"{machine.name}: not running")
            continue
        print(f"{machine.name}: pid {machine.pid}")
        for name, state in states.items():
            running = f"pid {state.pid} in there" if state.pid else "does not run"
            print(f"    {name:<24} {running}, started {state.starts} times")
    print(cluster.kubectl("get", "nodes", "-o", "wide"))


def shell(name: str, command: list[str]) -> None:
    cluster = Cluster.open(CLUSTER)
    machine = next((machine for machine in machines(cluster) if machine.name == name), None)
    if machine is None:
        raise NotRunningError(name=name)
    argv = machine.enter(command or [os.environ.get("SHELL") or "/bin/sh"])
    terminal = {"TERM": os.environ.get("TERM", "dumb"), "PS1": f"{name}# "}
    os.execvpe(argv[0], argv, {**ENVIRONMENT, **terminal})  # noqa: S606


def machines(cluster: Cluster) -> list[Machine]:
    return [cluster.control_plane, *(node.machine for node in cluster.nodes)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev cluster", description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("up", help="start a cluster, or say how to use the one that is there")
    start.add_argument("--nodes", type=int, choices=range(1, 10), default=1, metavar="N", help="1 to 9 (1)")
    start.add_argument("--runtime", action="store_true", help="install Kybernate's shim on the nodes and register it")
    start.add_argument("--short", action="store_true", help="pods leave a silent node after 10 s, not 6 min")
    verbs.add_parser("down", help="leave nothing of it")
    verbs.add_parser("load", help="Kybernate's image and those of the examples, onto every node")
    verbs.add_parser("status", help="its nodes, and the services of each machine")
    enter = verbs.add_parser("shell", help="a shell on a node, or a command")
    enter.add_argument("node", help=f"n1, n2, ... or {NAME}")
    enter.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    end_by_signals()
    try:
        if os.geteuid() != 0:
            raise NotRootError
        match options.verb:
            case "up":
                up(options.nodes, options.runtime, options.short)
            case "down":
                down()
            case "load":
                load()
            case "status":
                status()
            case "shell":
                shell(options.node, options.command)
    except KybernateError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
