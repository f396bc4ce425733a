"""`python -m kybernate_installer VERB`, on a node `PREFIX/bin/kybernate-installer VERB`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from kybernate.errors import KybernateError
from kybernate_installer import node
from kybernate_installer.containerd import BACK_SECONDS
from kybernate_installer.versions import Versions


def main() -> int:
    options = _parser().parse_args()
    where = (options.prefix, options.run_dir, options.patience)
    try:
        if options.verb == "install":
            node.install(*where, options.enter)
        elif options.verb == "uninstall":
            _say(node.uninstall(*where))
        else:
            with contextlib.nullcontext() if options.locked else Versions(options.prefix).alone():
                _say(node.activate(*where, options.version))
    except (KybernateError, OSError, ValueError) as error:
        print(f"kybernate-installer: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, KybernateError) else 1
    return 0


def _say(lines: list[str]) -> None:
    for line in lines:
        print(f"kybernate-installer: {line}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kybernate-installer", description="Kybernate on a node of a cluster.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    install = verbs.add_parser("install", help="put the files there and register the runtime handler")
    activate = verbs.add_parser("activate", help="the second half of install, on the node itself")
    uninstall = verbs.add_parser("uninstall", help="take the handler out and the files away")
    for verb in (install, activate, uninstall):
        verb.add_argument("--prefix", type=Path, default=Path("/opt/kybernate"))
        verb.add_argument("--run-dir", type=Path, default=Path("/run/kybernate"))
        verb.add_argument(
            "--patience", type=float, default=BACK_SECONDS, metavar="SECONDS",
            help="so long containerd may take to come back; then it gets its old configuration (default: 90)",
        )  # fmt: skip
    install.add_argument(
        "--enter", type=int, default=0, metavar="PID", help="a process in the node's mount namespace (1, with hostPID)"
    )
    activate.add_argument("--version", required=True, help="the folder below PREFIX/versions")
    activate.add_argument("--locked", action="store_true", help="the caller holds PREFIX/lock")
    return parser


if __name__ == "__main__":
    sys.exit(main())
