"""What a machine must have, and what is said when it has not."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from kybernate.criu import Preflight, preflight
from kybernate.criu.preflight import version_of

GOOD = Preflight(criu=(4, 2, 1), runc=(1, 1, 15), criu_check="", kdat_kept=True, kdat_stale=False, sys_resource=True)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Version: 4.2.1\nGitID: v4.2\n", (4, 2, 1)),
        ("Version: 4.2\n", (4, 2)),
        ("runc version 1.1.15+ds1\ncommit: 1.1.15+ds1-2+b4\nspec: 1.1.0\ngo: go1.23.4\n", (1, 1, 15)),
        ("runc version 1.2.0-rc.3\n", (1, 2, 0)),
        ("no such thing", None),
    ],
)
def test_versions_are_read(text: str, version: tuple[int, ...] | None) -> None:
    assert version_of(text) == version


def test_a_good_machine_has_no_findings() -> None:
    assert GOOD.findings == []
    assert GOOD.ready


@pytest.mark.parametrize(
    ("change", "code", "fatal"),
    [
        ({"criu": None}, "criu-missing", True),
        ({"criu": (3, 17, 1)}, "criu-too-old", True),
        ({"criu_check": "Error (criu/x.c:1): no"}, "criu-check", True),
        ({"runc": None}, "runc-missing", True),
        ({"runc": (1, 0, 3)}, "runc-too-old", True),
        ({"sys_resource": False}, "cap-sys-resource", False),
        ({"kdat_kept": False}, "kdat-no-tmpfs", False),
        ({"kdat_stale": True}, "kdat-stale", False),
    ],
)
def test_each_lack_is_said_with_a_remedy(change: dict[str, object], code: str, fatal: bool) -> None:
    facts = replace(GOOD, **change)  # type: ignore[arg-type]
    (finding,) = facts.findings
    assert (finding.code, finding.fatal) == (code, fatal)
    assert finding.remedy
    assert facts.ready is not fatal


def test_programs_that_are_missing_or_hang_are_facts(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    begun = time.monotonic()
    facts = preflight(criu=str(slow), runc=str(tmp_path / "none"), deadline_seconds=0.2)
    assert time.monotonic() - begun < 5
    assert (facts.criu, facts.runc) == (None, None)
    assert "0.2 s" in facts.criu_check
    assert not facts.ready
