"""A `criu` in front of the real one that can be told to hang, to fail, or only to note its calls.

The shim is installed with a PATH in which it comes first, as an administrator would put another CRIU in front. It
stands in for a CRIU with a defect; what it passes on is the real one's work.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from kybernate_shim.install import DEFAULT_PATH, install
from node_bed import NodeBed

SCRIPT = """#!/bin/sh
echo "$1" >> {folder}/calls
case $(cat {folder}/mode) in
    hang) exec sleep 1000 ;;
    fill) dd if=/dev/zero of="$(cat {folder}/filled)" bs=1M count=1024 2>/dev/null ;;
    fail) echo "broken on purpose" >&2; exit 1 ;;
esac
exec {criu} "$@"
"""


class BrokenCriu:
    """Its mode: `work`, `hang`, `fail`, or `fill`: fill the disk where `fills` says, then work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "calls").touch()
        self.mode("work")
        program = folder / "criu"
        program.write_text(SCRIPT.format(folder=folder, criu=shutil.which("criu")))
        program.chmod(0o755)

    def mode(self, word: str) -> None:
        (self.folder / "mode").write_text(word)

    def fills(self, file: Path) -> None:
        (self.folder / "filled").write_text(str(file))
        self.mode("fill")

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().split()


@contextlib.contextmanager
def broken_criu(bed: NodeBed, folder: Path) -> Iterator[BrokenCriu]:
    """The bed's shim finds this CRIU; containers made meanwhile keep it."""
    runc = Path(shutil.which("runc") or "/usr/sbin/runc")
    criu = BrokenCriu(folder)
    install(bed.prefix, bed.run, runc, path=f"{folder}:{DEFAULT_PATH}")
    try:
        yield criu
    finally:
        criu.mode("work")
        install(bed.prefix, bed.run, runc)
