"""Finding a node's containerd and starting it anew, with a process in its place that listens as one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kybernate_installer import containerd
from kybernate_installer.containerd import Distribution, NoContainerdError, NotBackError

LISTEN = """
import os, socket, sys
path = sys.argv[1]
with socket.socket(socket.AF_UNIX) as server:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    server.bind(path)
    server.listen()
    print("listens", flush=True)
    while True:
        server.accept()[0].close()
"""


@pytest.fixture(autouse=True)
def ctr_is_not_asked_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's ctr is found, and gets no answer from these sockets."""
    monkeypatch.setattr(containerd, "_CTR_SECONDS", 0.1)


@contextlib.contextmanager
def listening(tmp_path: Path, again: bool) -> Iterator[Distribution]:
    """A process that listens at a socket; `again`: one that is started again when it ends."""
    (tmp_path / "listen.py").write_text(LISTEN)
    once = [sys.executable, "-I", str(tmp_path / "listen.py"), str(tmp_path / "sock"), "--config", "etc/config.toml"]
    argv = ["/bin/sh", "-c", 'while :; do "$@"; done', "sh", *once] if again else once
    process = subprocess.Popen(
        argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        assert process.stdout
        assert select.select([process.stdout], [], [], 60)[0]
        yield Distribution("test", str(tmp_path / "sock"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def test_found_by_its_socket_with_the_file_that_it_was_started_with(tmp_path: Path) -> None:
    with listening(tmp_path, again=False) as distribution:
        nobody = Distribution("nobody", str(tmp_path / "nobody"))
        found = containerd.find((nobody, distribution))
        assert found.distribution == distribution
        assert found.config == tmp_path / "etc/config.toml"
        assert found.program == os.path.realpath(sys.executable)
        assert found.path == os.environ["PATH"]
        assert containerd.start_of(found.pid) == found.started


def test_where_nobody_listens_the_sockets_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoContainerdError, match=str(tmp_path)):
        containerd.find((Distribution("x", str(tmp_path / "sock")),))


def test_one_that_is_starting_anew_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "listen.py").write_text(LISTEN)
    late = ["/bin/sh", "-c", 'sleep 0.3; exec "$@"', "sh", sys.executable, "-I", str(tmp_path / "listen.py")]
    with subprocess.Popen([*late, str(tmp_path / "sock")], stdout=subprocess.DEVNULL) as process:
        try:
            assert containerd.find((Distribution("x", str(tmp_path / "sock")),), patience=60).pid == process.pid
        finally:
            process.kill()


def test_a_distributions_template_is_edited_in_place_of_what_is_read(tmp_path: Path) -> None:
    with listening(tmp_path, again=False) as distribution:
        other = Distribution("with a template", distribution.socket, "/var/lib/other/containerd.tmpl")
        assert containerd.find((other,)).config == Path("/var/lib/other/containerd.tmpl")


def test_started_anew_it_is_another_process_that_listens(tmp_path: Path) -> None:
    with listening(tmp_path, again=True) as distribution:
        first = containerd.find((distribution,))
        second = first.restart(60)
        assert (second.pid, second.started) != (first.pid, first.started)
        assert containerd.find((distribution,)) == second


def test_one_that_came_back_broken_is_not_left_running(tmp_path: Path) -> None:
    """It has read the file that is taken back: who restarts through the one before must reach it."""
    with listening(tmp_path, again=True) as distribution:
        first = containerd.find((distribution,))
        broken = first.restart(60)
        third = first.restart(60)
        assert (third.pid, third.started) != (broken.pid, broken.started)


def test_one_that_nobody_starts_again_is_said(tmp_path: Path) -> None:
    with listening(tmp_path, again=False) as distribution, pytest.raises(NotBackError, match="Who starts it"):
        containerd.find((distribution,)).restart(0.5)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose systemctl is the script at this path."""
    monkeypatch.setattr(containerd, "_SYSTEMD", str(tmp_path))
    monkeypatch.setattr(containerd, "_PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "systemctl"


def test_where_systemd_is_it_restarts_the_unit(tmp_path: Path, systemd: Path) -> None:
    with listening(tmp_path, again=True) as distribution:
        first = dataclasses.replace(containerd.find((distribution,)), unit="containerd.service")
        systemd.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/told\nexec kill {first.pid}\n')
        systemd.chmod(0o755)
        assert first.restart(60).pid != first.pid
        assert (tmp_path / "told").read_text() == "restart containerd.service\n"


def test_what_systemd_says_of_a_failure_is_passed_on(tmp_path: Path, systemd: Path) -> None:
    systemd.write_text("#!/bin/sh\necho Job for containerd.service failed. >&2\nexit 1\n")
    systemd.chmod(0o755)
    with listening(tmp_path, again=False) as distribution, pytest.raises(NotBackError, match=r"Job for .* failed"):
        dataclasses.replace(containerd.find((distribution,)), unit="containerd.service").restart(60)


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["/usr/bin/containerd"], "/etc/containerd/config.toml"),
        (["containerd", "--config", "/x.toml", "--log-level", "debug"], "/x.toml"),
        (["containerd", "-l", "info", "-c", "/x.toml"], "/x.toml"),
        (["containerd", "--config=/a=b.toml"], "/a=b.toml"),
    ],
)
def test_the_file_of_a_command_line(words: list[str], file: str) -> None:
    assert containerd.config_of(words) == file
