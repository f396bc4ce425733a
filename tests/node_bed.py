"""What tests of several rooms stand on: a private containerd whose handler `kybernate` is the installed shim.

On a machine with cgroup version 1 the same tests run on version 2 when pytest is started in a mount namespace of its
own with cgroup2 over /sys/fs/cgroup; nothing here knows the difference.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kybernate_shim.install import install

from kybernate.lab import Containerd, Image, python_image
from kybernate.lab.clean import TESTS, remove_dead_tests

LAUNCHER = "bin/kybernate-runc"
PYTHON_IMAGE = "localhost/kybernate-test-python:1"
"""Python and busybox of this machine; the workload brings what runs."""


@dataclass(frozen=True)
class NodeBed:
    """The containerd, where the shim is installed, and the folder in which its hook looks for an agent."""

    containerd: Containerd
    prefix: Path
    run: Path

    @property
    def launcher(self) -> Path:
        return self.prefix / LAUNCHER

    def load(self, image: Image) -> None:
        self.containerd.load(image)


@contextlib.contextmanager
def open_node_bed() -> Iterator[NodeBed]:
    """A bed with PYTHON_IMAGE in it; what killed sessions left is removed first."""
    remove_dead_tests()
    name = f"{TESTS}{os.getpid()}"
    root, run = Path("/var/tmp", name), Path("/run", f"{name}.run")  # below /run nothing may be executed, on Debian
    bed = NodeBed(Containerd(root, name, launcher=root / "prefix" / LAUNCHER), root / "prefix", run)
    try:
        bed.containerd.start(images=[python_image(PYTHON_IMAGE)])
        install(bed.prefix, run, Path(shutil.which("runc") or "/usr/sbin/runc"))
        yield bed
    finally:
        bed.containerd.stop()
        shutil.rmtree(run, ignore_errors=True)
