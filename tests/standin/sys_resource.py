"""What stands in for CAP_SYS_RESOURCE where a machine lacks it: a `criu` for the PATH that has prlimit.c preloaded.

Tests only. It serves dumps and restores of processes that are not root's, nothing else that the capability allows.
"""

from __future__ import annotations

from pathlib import Path

from programs.build import made

from kybernate.criu import has_sys_resource
from kybernate.lab.process import run

SOURCE = Path(__file__).with_name("prlimit.c")
NEEDED = not has_sys_resource()
_COMPILE = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]
_CRIU = '#!/bin/sh\nLD_PRELOAD=${0%/*}/prlimit.so exec @CRIU@ "$@"\n'


def folder(criu: str) -> Path:
    """A folder to put before all others in the PATH of runc. `criu`: the program that is called in the end."""
    return made("standin", "\n".join([SOURCE.read_text(), *_COMPILE, _CRIU, criu]), lambda target: _make(target, criu))


def _make(target: Path, criu: str) -> None:
    target.mkdir()
    run([*_COMPILE, "-o", target / "prlimit.so", SOURCE], deadline_seconds=60)
    (target / "criu").write_text(_CRIU.replace("@CRIU@", criu))
    (target / "criu").chmod(0o755)
