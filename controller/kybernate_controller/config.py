"""Flags, and for those that take a value an environment variable as well (`--workers` is KYBERNATE_WORKERS)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NAMESPACE = "kybernate-system"


@dataclass(frozen=True)
class Config:
    """As it was given."""

    kubeconfig: Path | None
    context: str | None
    namespace: str
    lease_name: str
    lease_seconds: int
    renew_seconds: float
    retry_seconds: float
    elect: bool
    identity: str
    listen: str
    workers: int
    verbose: bool


def read(words: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Ends the program with a message where a flag is wrong."""
    parser = argparse.ArgumentParser(prog="kybernate controller", description="The controller of a cluster.")

    def add(flag: str, fallback: str | None, text: str, **rest: object) -> None:
        value = environ.get("KYBERNATE_" + flag.upper().replace("-", "_"), fallback)
        parser.add_argument(f"--{flag}", default=value, help=f"{text} (default: {fallback})", **rest)  # type: ignore[arg-type]

    add("kubeconfig", None, "kubeconfig file; in a pod its service account is used", type=Path)
    add("context", None, "context of the kubeconfig")
    add("namespace", environ.get("POD_NAMESPACE", NAMESPACE), "namespace of the Lease")
    add("lease-name", "kybernate-controller", "name of the Lease")
    add("lease-seconds", "15", "a leader that is silent for so long is replaced", type=int)
    add("renew-seconds", "10", "a leader that could not renew the Lease for so long gives up", type=float)
    add("retry-seconds", "2", "between two renewals", type=float)
    add("identity", environ.get("POD_NAME", os.uname().nodename), "who we are in the Lease")
    add("listen", "0.0.0.0:8081", "address of /healthz, /readyz and /metrics; empty: none")
    add("workers", "8", "workloads looked at at the same time", type=int)
    parser.add_argument("--no-election", action="store_true", help="act without a Lease: there is only one of us")
    parser.add_argument("--verbose", action="store_true", help="log every write")
    given = parser.parse_args(words)
    if given.workers < 1:
        parser.error("--workers: expected at least 1")
    return Config(
        kubeconfig=Path(given.kubeconfig) if given.kubeconfig else None,
        context=given.context,
        namespace=given.namespace,
        lease_name=given.lease_name,
        lease_seconds=given.lease_seconds,
        renew_seconds=given.renew_seconds,
        retry_seconds=given.retry_seconds,
        elect=not given.no_election,
        identity=given.identity,
        listen=given.listen,
        workers=given.workers,
        verbose=given.verbose,
    )
