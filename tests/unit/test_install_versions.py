"""Versions on a node, and the files of one."""

from __future__ import annotations

import os
import select
import subprocess
import threading
from pathlib import Path

import pytest
from kybernate_installer import payload
from kybernate_installer.versions import BusyError, NotOursError, Versions


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    made = Versions(tmp_path / "kybernate")
    with made.alone():
        return made


def fill(folder: Path, at: Path) -> None:
    (folder / "bin").mkdir()
    (folder / "lib").mkdir()
    (folder / "bin/launcher").write_text(str(at))


def add(versions: Versions, name: str) -> Path:
    version = versions.add(name, fill)
    versions.switch(version, Path("/usr/sbin/runc"))
    return version


def test_the_present_version_is_reached_by_paths_that_stay(versions: Versions) -> None:
    add(versions, "1")
    assert (versions.prefix / "bin/launcher").read_text() == f"{versions.folder}/1"
    add(versions, "2")
    assert (versions.prefix / "bin/launcher").read_text() == f"{versions.folder}/2"
    assert os.readlink(versions.previous) == "versions/1"
    assert os.readlink(versions.prefix / "next-runtime") == "/usr/sbin/runc"
    add(versions, "2")
    assert os.readlink(versions.previous) == "versions/1"


def test_a_version_that_is_there_is_not_written_again(versions: Versions) -> None:
    def never(folder: Path, at: Path) -> None:
        raise AssertionError(folder)

    first = add(versions, "1")
    assert versions.add("1", never) == first


def test_a_version_that_was_cut_short_is_not_there_and_goes(versions: Versions) -> None:
    def cut(folder: Path, at: Path) -> None:
        fill(folder, at)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        versions.add("1", cut)
    assert not (versions.folder / "1").exists()
    add(versions, "2")
    assert [path.name for path in versions.folder.iterdir()] == ["2"]


def test_what_nobody_runs_is_forgotten_but_the_last_two(versions: Versions) -> None:
    for name in ("1", "2", "3"):
        add(versions, name)
    assert versions.forget_old() == ["1"]
    assert sorted(path.name for path in versions.folder.iterdir()) == ["2", "3"]


def test_a_standalone_installation_is_not_overwritten(versions: Versions) -> None:
    (versions.prefix / "bin").mkdir()
    with pytest.raises(NotOursError, match="bin"):
        add(versions, "1")
    assert not versions.current.exists()


def test_removing_leaves_nothing_but_what_others_put_there(versions: Versions) -> None:
    add(versions, "1")
    versions.remove()
    assert not versions.prefix.exists()


def test_one_installer_at_a_time(versions: Versions) -> None:
    with versions.alone(), pytest.raises(BusyError, match="held"), versions.alone(0.2):
        pytest.fail("two hold the lock")
    waited = threading.Event()

    def wait() -> None:
        with versions.alone():
            waited.set()

    with versions.alone():
        thread = threading.Thread(target=wait)
        thread.start()
        assert not waited.is_set()
    thread.join(20)
    assert waited.is_set()


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version as it lies on a node, taken from this machine."""
    versions = Versions(tmp_path_factory.mktemp("laid") / "kybernate")
    with versions.alone():
        collected = payload.collect()
        version = versions.add(f"1-{collected.digest}", lambda folder, at: payload.lay(collected, folder, at))
        versions.switch(version, Path("/usr/sbin/runc"))
    return version


def test_the_same_machine_gives_the_same_version(laid: Path) -> None:
    assert laid.name == f"1-{payload.collect().digest}"


def test_the_own_python_knows_itself_and_takes_no_library_of_the_machine(laid: Path) -> None:
    code = "import ctypes, json, os, select, socket, sys, tomllib"
    code += "; print(sys.executable, sys.prefix, os.readlink('/proc/self/exe'))"
    code += "; print(*{line.split()[-1] for line in open('/proc/self/maps') if '.so' in line})"
    for words in (payload.start(laid), [payload.python(laid)]):
        said = subprocess.run(
            [*words, "-IS", "-c", code], check=True, capture_output=True, text=True, timeout=30
        ).stdout
        first, libraries = said.splitlines()
        assert first.split() == [payload.python(laid), f"{laid}/own/python", f"{laid}/own/loader/python3"]
        assert libraries.split()
        assert [path for path in libraries.split() if not path.startswith(f"{laid}/own/")] == []


def test_a_process_of_it_is_known_and_keeps_its_version(laid: Path) -> None:
    """By the name that people look for, and by the version that must not go."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([payload.python(laid), "-IS", "-c", code], stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        assert select.select([process.stdout], [], [], 30)[0]
        assert Path(f"/proc/{process.pid}/comm").read_text() == "python3\n"
        versions = Versions(laid.parent.parent)
        assert versions.running() == {laid.name}
        process.communicate(b"", 30)
    assert versions.running() == set()


@pytest.mark.parametrize("program", payload.PROGRAMS)
def test_the_own_programs_run(laid: Path, program: str) -> None:
    said = subprocess.run([laid / "bin" / program, "--version"], check=True, capture_output=True, text=True, timeout=30)
    assert {"criu": "Version: 4.", "tar": "tar (GNU tar)", "gzip": "gzip "}[program] in said.stdout


def test_the_installer_runs_from_there_by_the_own_python(laid: Path) -> None:
    before = sorted(laid.rglob("*"))
    argv: list[str | Path] = [
        laid / "bin/kybernate-installer",
        "activate",
        "--prefix",
        laid.parent.parent,
        "--run-dir",
        "/nowhere",
    ]
    said = subprocess.run([*argv, "--help"], check=True, capture_output=True, text=True, timeout=60)
    assert "the folder below PREFIX/versions" in said.stdout
    assert sorted(laid.rglob("*")) == before
    assert list(laid.glob("lib/kybernate_shim/__pycache__/keeper.*.pyc"))
