"""Building Kubernetes: once, whole or not at all. The compiler, which takes minutes, is a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kybernate.lab import kubernetes

GO = """#!/bin/sh
case "$*" in
*download*)
    echo "{\\"GoMod\\": \\"$HERE/theirs.mod\\"}" ;;
*)
    for word; do [ "$before" != -o ] || out=$word; before=$word; done
    echo "$(basename "$out")" >>"$HERE/built"
    [ ! -e "$HERE/broken" ] || { echo "no network" >&2; exit 1; }
    grep -q 'replace k8s.io/api => k8s.io/api v0' "$(dirname "$out")/go.mod" || exit 2
    mkdir -p "$GOCACHE" "$GOMODCACHE"
    printf 'a program' >"$out" ;;
esac
"""
MOD = "module k8s.io/kubernetes\n\ngo 1.24.0\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a `go`, first on the PATH, and an empty cache."""
    (tmp_path / "go").write_text(GO)
    (tmp_path / "go").chmod(0o755)
    (tmp_path / "theirs.mod").write_text(MOD)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def built(here: Path) -> list[str]:
    return (here / "built").read_text().split()


def test_two_builds_at_once_build_each_program_once(here: Path) -> None:
    argv = [sys.executable, "-m", "kybernate.lab.kubernetes"]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(built(here)) == sorted(kubernetes.PROGRAMS)
    folder = here / "cache" / "kybernate" / "kubernetes" / kubernetes.VERSION
    assert [lines[-1] for lines in said] == [str(folder), str(folder)]
    assert {path.name for path in folder.iterdir()} == set(kubernetes.PROGRAMS)
    assert not (here / "cache" / "kybernate" / "go").exists()


def test_a_failed_build_leaves_nothing_and_the_next_goes_on(here: Path) -> None:
    (here / "broken").touch()
    with pytest.raises(kubernetes.BuildError, match="no network"):
        kubernetes.programs(say=lambda line: None)
    folder = kubernetes.folder()
    assert not list(folder.iterdir())
    (here / "broken").unlink()
    (folder / ".making-killed").mkdir()
    kubernetes.programs(say=lambda line: None)
    assert {path.name for path in folder.iterdir()} == set(kubernetes.PROGRAMS)
    before = built(here)
    kubernetes.programs(say=lambda line: None)
    assert built(here) == before
