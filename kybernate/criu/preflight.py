"""Is this machine able to dump and restore? Facts first, then what follows from them.

`preflight` asks each program once, with a deadline, and changes nothing. The agent refuses to park while a finding is
`fatal`; `doctor` prints them all. Facts cost about 0.2 s, most of it `criu check`: ask once at start, not before each
dump.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kybernate.criu import kdat
from kybernate.criu.errors import ProgramDeadlineError, ProgramMissingError

CRIU_LEAST = (4, 2)
RUNC_LEAST = (1, 1)
_CAP_SYS_RESOURCE = 24
_DEADLINE_SECONDS = 20.0

Version = tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. Not `fatal`: it works, but slower, or not for all."""

    code: str
    fatal: bool
    message: str
    remedy: str


@dataclass(frozen=True)
class Preflight:
    """The facts. `criu_check` is empty if `criu check` is content, else its last error."""

    criu: Version | None
    runc: Version | None
    criu_check: str
    kdat_kept: bool
    kdat_stale: bool
    sys_resource: bool

    @property
    def findings(self) -> list[Finding]:
        return findings(self)

    @property
    def ready(self) -> bool:
        return not any(finding.fatal for finding in self.findings)


def preflight(criu: str = "criu", runc: str = "runc", deadline_seconds: float = _DEADLINE_SECONDS) -> Preflight:
    """Ask this machine. A program that is missing or hangs is a fact (None), no error."""
    return Preflight(
        criu=_version([criu, "--version"], deadline_seconds),
        runc=_version([runc, "--version"], deadline_seconds),
        criu_check=_check(criu, deadline_seconds),
        kdat_kept=kdat.is_kept(),
        kdat_stale=kdat.is_stale(),
        sys_resource=has_sys_resource(),
    )


def findings(facts: Preflight) -> list[Finding]:
    """What follows from the facts, fatal ones first."""
    found = []

    def say(code: str, fatal: bool, message: str, remedy: str) -> None:
        found.append(Finding(code, fatal, message, remedy))

    if facts.criu is None:
        say("criu-missing", True, "criu does not answer.", "Install CRIU 4.2 or newer.")
    elif facts.criu < CRIU_LEAST:
        message = f"criu is {_text(facts.criu)}; before 4.2 it fails with kernels 6.x."
        say("criu-too-old", True, message, "Install CRIU 4.2 or newer.")
    elif facts.criu_check:
        message = f"`criu check` says: {facts.criu_check}"
        say("criu-check", True, message, "Run `criu check --all`; the kernel lacks a feature.")
    if facts.runc is None:
        say("runc-missing", True, "runc does not answer.", "Install runc 1.1 or newer.")
    elif facts.runc < RUNC_LEAST:
        say("runc-too-old", True, f"runc is {_text(facts.runc)}.", "Install runc 1.1 or newer.")
    if not facts.sys_resource:
        message = "CAP_SYS_RESOURCE is missing: only containers whose processes are all root's can be parked."
        say("cap-sys-resource", False, message, "Give containerd and the agent that capability.")
    if not facts.kdat_kept:
        message = (
            "/run is no tmpfs, so CRIU probes the kernel at every call: 45 to 50 ms of each park and of each wake."
        )
        say(
            "kdat-no-tmpfs",
            False,
            message,
            "Mount a tmpfs at /run at boot, as systemd does; the agent makes do meanwhile.",
        )
    elif facts.kdat_stale:
        message = "/run/criu.kdat.tmp is left over, so CRIU keeps no cache: 45 to 50 ms of each park and of each wake."
        say("kdat-stale", False, message, "Remove /run/criu.kdat.tmp; the agent does so when it starts.")
    return found


def has_sys_resource() -> bool:
    """This process has CAP_SYS_RESOURCE, and so has a CRIU that it, or its like, starts."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def version_of(text: str) -> Version | None:
    """The first version number in a program's answer: `Version: 4.2.1`, `runc version 1.1.15+ds1`."""
    match = re.search(r"[Vv]ersion:? v?(\d+(?:\.\d+)+)", text)
    return tuple(int(part) for part in match[1].split(".")) if match else None


def _version(command: Sequence[str], deadline_seconds: float) -> Version | None:
    try:
        return version_of(_run(command, deadline_seconds).stdout)
    except (ProgramMissingError, ProgramDeadlineError):
        return None


def _check(criu: str, deadline_seconds: float) -> str:
    try:
        done = _run([criu, "check"], deadline_seconds)
    except (ProgramMissingError, ProgramDeadlineError) as error:
        return str(error)
    said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("Error")]
    return "" if done.returncode == 0 else (errors or said or [f"exit status {done.returncode}"])[-1]


def _run(command: Sequence[str], deadline_seconds: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=deadline_seconds, check=False
        )
    except OSError as error:
        raise ProgramMissingError(program=command[0], problem=error.strerror) from error
    except subprocess.TimeoutExpired as error:
        raise ProgramDeadlineError(command=" ".join(command), deadline_seconds=deadline_seconds) from error


def _text(version: Version) -> str:
    return ".".join(map(str, version))
