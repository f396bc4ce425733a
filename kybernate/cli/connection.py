"""Whom a command talks to: the agent of this machine, or a cluster.

An explicit word wins: --socket (or its variable) means the agent; --kubeconfig, --context, -n, -A, or being called as a
kubectl plugin mean the cluster. Without one it is the agent where its socket exists, else the cluster where there is a
kubeconfig.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kybernate.agentapi.address import DEFAULT_SOCKET, SOCKET_VARIABLE

if TYPE_CHECKING:
    from kybernate.agentapi.client import AgentClient
    from kybernate.cli.cluster import ClusterClient

PLUGIN = "kubectl-kybernate"


def add_options(parser: argparse.ArgumentParser, suppressed: bool) -> None:
    """--socket, --kubeconfig, --context, -n, -A. `suppressed`: without defaults, which would overwrite what stands
    before the command."""
    absent = argparse.SUPPRESS if suppressed else None

    def option(*words: str, says: str, **more: object) -> None:
        parser.add_argument(*words, default=absent, help=says, **more)  # type: ignore[arg-type]

    option(
        "--socket",
        type=Path,
        metavar="PATH",
        says=f"the agent's socket (default: ${SOCKET_VARIABLE}, or {DEFAULT_SOCKET})",
    )
    option("--kubeconfig", type=Path, metavar="FILE", says="talk to a cluster, with this kubeconfig")
    option("--context", metavar="NAME", says="the kubeconfig's context")
    option("-n", "--namespace", metavar="NAME", says="the cluster's namespace (default: the context's)")
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", default=absent or False, help="of the cluster; for `get`"
    )


def in_cluster(options: argparse.Namespace, program: str = "") -> bool:
    """Whether the command is for a cluster; see the module."""
    if options.socket is not None:
        return False
    if options.kubeconfig or options.context or options.namespace or options.all_namespaces or program == PLUGIN:
        return True
    if os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET.exists():
        return False
    return bool(os.environ.get("KUBECONFIG")) or Path("~/.kube/config").expanduser().exists()


def connect(options: argparse.Namespace) -> AgentClient | ClusterClient:
    """A client, to be used in a `with`. Raises NoAgentError, CredentialsError."""
    if in_cluster(options, options.program):
        from kybernate.cli.cluster import ClusterClient

        namespace = "" if options.all_namespaces else options.namespace
        return ClusterClient(options.kubeconfig, options.context, namespace)
    from kybernate.agentapi.client import AgentClient

    return AgentClient(options.socket or Path(os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET))
