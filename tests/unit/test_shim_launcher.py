"""The installed launcher in front of a stand-in for runc that prints its arguments; a wire without a listener."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from kybernate_shim import wire
from kybernate_shim.install import install, uninstall

PYTHON = "/usr/bin/python3"


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    runc = tmp_path / "runc"
    runc.write_text('#!/bin/sh\necho "$@" "[$LD_PRELOAD$PYTHONPATH$LD_LIBRARY_PATH]" "$PATH"\n')
    runc.chmod(0o755)
    return install(tmp_path / "prefix", tmp_path / "run", runc, "/the/path:/usr/bin:/bin", python=PYTHON)


def call(launcher: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **env}
    return subprocess.run([launcher, *words], check=False, capture_output=True, text=True, env=environ, timeout=20)


def test_call_about_nobody_of_ours_reaches_the_next_runtime_with_a_clean_environment(launcher: Path) -> None:
    ran = call(launcher, "--root", "/r", "state", "c 1", PYTHONPATH="/snap")
    assert ran.stdout == "--root /r state c 1 [] /the/path:/usr/bin:/bin\n"


def test_create_of_an_unmanaged_bundle_is_passed_on(launcher: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"annotations": {"kybernate.io/containers": "web"}}')
    assert call(launcher, "create", "--bundle", str(tmp_path), "c1").stdout.startswith("create --bundle")


@pytest.mark.parametrize(
    ("config", "more", "hooked"),
    [
        ('{"annotations": {}}', [], False),
        ('{"annotations": {"kybernate.io/containers": "web"}}', [], True),
        ('{"path":"/proc/4711/ns/pid"}', [], True),
        ('{"path":"/proc/47/ns/pid"}', [], False),
        ('{"annotations": {}}', ["--bundle=/elsewhere"], True),
        (None, [], True),
    ],
    ids=["unmanaged", "managed", "a keeper's namespace", "somebody's namespace", "two bundles", "no bundle"],
)
def test_a_create_needs_python_only_where_it_may_concern_us(
    tmp_path: Path, config: str | None, more: list[str], hooked: bool
) -> None:
    for name in ("runc", "python"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name}\n")
        (tmp_path / name).chmod(0o755)
    runtime = install(tmp_path / "prefix", tmp_path / "run", tmp_path / "runc", python=str(tmp_path / "python"))
    (tmp_path / "run/pids/4711").symlink_to("../keepers/c0")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    ran = call(runtime, "--root", "/r", "create", "--bundle", str(tmp_path), *more, "--pid-file", "/p", "c1")
    assert ran.stdout == ("python\n" if hooked else "runc\n")


def test_create_without_a_bundle_is_left_to_the_next_runtime(launcher: Path, tmp_path: Path) -> None:
    assert call(launcher, "create", "--bundle", str(tmp_path / "none"), "c1").stdout.startswith("create --bundle")


@pytest.mark.parametrize("word", ["", ".", "..", "../keepers"])
def test_odd_words_are_no_containers(launcher: Path, word: str) -> None:
    assert call(launcher, "state", word).stdout.startswith("state")


def test_path_with_a_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without spaces"):
        install(tmp_path / "a b", tmp_path / "run", Path("/usr/sbin/runc"))


def test_installing_again_replaces_and_uninstalling_leaves_nothing(launcher: Path, tmp_path: Path) -> None:
    (tmp_path / "prefix/lib/kybernate_shim/hook.py").write_text("broken")
    install(tmp_path / "prefix", tmp_path / "run", tmp_path / "runc", python=PYTHON)
    assert call(launcher, "create", "--bundle", str(tmp_path), "c1").returncode == 0
    uninstall(tmp_path / "prefix", tmp_path / "run")
    assert [path for path in (tmp_path / "prefix").rglob("*") if path.is_file()] == []


def test_uninstall_is_refused_while_managed_containers_exist(launcher: Path, tmp_path: Path) -> None:
    (tmp_path / "run/keepers/c1").mkdir()
    with pytest.raises(RuntimeError, match="c1"):
        uninstall(tmp_path / "prefix", tmp_path / "run")
    assert launcher.exists()


def test_modules_are_small_for_a_hook_call(launcher: Path, tmp_path: Path) -> None:
    """json, typing, re or subprocess would each cost an unmanaged create some milliseconds."""
    lib = tmp_path / "prefix/lib"
    code = f"import sys; sys.path.insert(0, {str(lib)!r}); import kybernate_shim.hook, kybernate_shim.create; "
    code += "print(' '.join(sys.modules))"
    loaded = subprocess.run([PYTHON, "-IS", "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"json", "typing", "re", "subprocess", "socket", "enum", "ctypes", "dataclasses"} & set(loaded)


def test_asking_nobody_waits_for_somebody_and_then_says_so(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(wire.Unreachable):
        wire.ask_patiently(str(tmp_path / "sock"), {"verb": "create"}, 0.3)
    assert time.monotonic() - began >= 0.3


def test_socket_in_a_very_long_path_is_reached(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    server = wire.listen(str(folder / "sock"))
    assert (folder / "sock").stat().st_mode & 0o777 == 0o600
    with pytest.raises(wire.NoAnswer):
        wire.ask(str(folder / "sock"), {"verb": "state"}, 0.1)
    server.close()
