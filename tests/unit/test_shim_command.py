"""runc's command line as containerd writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kybernate_shim import cgroup, hook, mounts
from kybernate_shim.command import parse

GLOBALS = ["--root", "/run/containerd/runc/k8s.io", "--log", "/b/log.json", "--log-format", "json"]


def test_create_is_taken_apart() -> None:
    command = parse([*GLOBALS, "--systemd-cgroup", "create", "--bundle", "/b", "--pid-file", "/b/init.pid", "c1"])
    assert command.globals == [*GLOBALS, "--systemd-cgroup"]
    assert (command.verb, command.container) == ("create", "c1")
    assert command.option("--bundle", "-b") == "/b"
    assert command.global_option("--log") == "/b/log.json"


def test_option_with_an_equals_sign_is_understood() -> None:
    command = parse(["--root=/r", "create", "--bundle=/b", "c1"])
    assert command.global_option("--root") == "/r"
    assert command.option("--bundle", "-b") == "/b"
    assert command.container == "c1"


def test_exec_and_kill_name_their_container_first() -> None:
    command = parse([*GLOBALS, "exec", "--process", "/tmp/p", "--detach", "--pid-file", "/b/x.pid", "c1"])
    assert command.container == "c1"
    command = parse([*GLOBALS, "kill", "--all", "c1", "9"])
    assert (command.arguments, command.has("--all", "-a")) == (["c1", "9"], True)
    assert parse([*GLOBALS, "update", "--resources", "-", "c1"]).option("--resources", "-r") == "-"


def test_no_arguments_are_no_error() -> None:
    assert parse([]).verb == ""
    assert parse(["--version"]).container == ""
    assert parse(["--root"]).verb == ""


@pytest.mark.parametrize(("word", "number"), [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("usr1", 10)])
def test_signals_are_written_as_runc_takes_them(word: str, number: int) -> None:
    assert hook.signal_number(word) == number


def test_unknown_signal_is_refused() -> None:
    with pytest.raises(hook.Failed, match="NOPE"):
        hook.signal_number("NOPE")


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("/kubepods/pod1/c1", "/kubepods/pod1/c1"),
        ("kubepods-besteffort-pod1.slice:cri-containerd:c1",
         "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-c1.scope"),
        ("system.slice:runc:c1", "/system.slice/runc-c1.scope"),
        ("-.slice:runc:c1", "/runc-c1.scope"),
    ],
)  # fmt: skip
def test_cgroup_of_a_container_to_be_is_found_for_both_drivers(path: str, folder: str) -> None:
    assert {found.endswith(folder) for found in cgroup.of_path(path).values()} == {True}


def test_relative_cgroup_path_is_refused() -> None:
    with pytest.raises(ValueError, match="relative"):
        cgroup.of_path("c1")


def test_leftover_mounts_are_found_innermost_first() -> None:
    lines = [f"{n} 1 0:1 / {point} rw - tmpfs tmpfs rw" for n, point in enumerate(("/a", "/a/b", "/ab", "/a/b/c"))]
    assert mounts.below(["/a"], "\n".join(lines)) == ["/a/b/c", "/a/b"]


def test_yards_of_criu_are_known_by_their_name() -> None:
    points = (
        "/",
        "/tmp",
        "/tmp/.criu.mntns.a1",
        "/tmp/.criu.mntns.a1/9",
        "/tmp/x/.criu.mntns.b",
        "/tmp/.criu.cgyard.c",
    )
    lines = [f"{n} 1 0:1 / {point} rw - tmpfs tmpfs rw" for n, point in enumerate(points)]
    assert mounts.yards("\n".join(lines)) == ["/tmp/.criu.mntns.a1/9", "/tmp/.criu.mntns.a1"]


def test_what_is_wrong_is_in_the_log_whatever_stderr_is(tmp_path: Path) -> None:
    """containerd gives a sandbox's runc a /dev/null that cannot be written to."""
    words = ["--log", f"{tmp_path}/log.json", "--log-format", "json", "create", "c1"]
    code = f"from kybernate_shim.hook import Hook; Hook('/r', '/runc', '/l', {words!r}).complain('why')"
    nowhere = os.open("/dev/null", os.O_RDONLY)
    try:
        subprocess.run([sys.executable, "-c", code], stderr=nowhere, check=True)
    finally:
        os.close(nowhere)
    said = json.loads((tmp_path / "log.json").read_text())
    assert (said["level"], said["msg"]) == ("error", "why")
