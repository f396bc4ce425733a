"""What a figure was measured on: kernel, processor, versions. No names of machines and no paths."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any

from kybernate.lab.process import CGROUP_ROOT, ProgramError, ProgramMissingError, run

_VERSIONS = {"criu": ["criu", "--version"], "runc": ["runc", "--version"], "containerd": ["containerd", "--version"]}


def facts() -> dict[str, Any]:
    """Everything a reader needs to judge the figures."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "kernel": platform.release().partition("-")[0],  # what follows is who built it
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "load_average_at_end": [round(value, 2) for value in os.getloadavg()],
        "cgroup_version": 2 if (CGROUP_ROOT / "cgroup.procs").exists() else 1,
        "python": platform.python_version(),
        **{name: _version(argv) for name, argv in _VERSIONS.items()},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(argv: list[str]) -> str:
    """The first word that begins with a digit."""
    with contextlib.suppress(ProgramError, ProgramMissingError):
        for word in run(argv).split():
            if word.lstrip("v")[:1].isdigit():
                return word
    return "unknown"
