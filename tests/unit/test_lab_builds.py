"""What is made once is made by one at a time."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from kybernate.lab.builds import alone, plain_modes
from kybernate.lab.locks import LockHeldError


def test_who_comes_second_waits_and_says_so(tmp_path: Path) -> None:
    waits, done = threading.Event(), threading.Event()

    def second() -> None:
        with alone(tmp_path, tmp_path, lambda line: waits.set()):
            done.set()

    other = threading.Thread(target=second)
    with alone(tmp_path, tmp_path, print):
        other.start()
        assert waits.wait(20)
        assert not done.is_set()
    other.join(20)
    assert done.is_set()


def test_what_a_killed_one_left_is_gone_and_nothing_else(tmp_path: Path) -> None:
    making = tmp_path / "programs"
    for name in (".making-1", "whole"):
        (making / name).mkdir(parents=True)
    with alone(tmp_path, making, print):
        assert [path.name for path in making.iterdir()] == ["whole"]


def test_another_build_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        alone(tmp_path, tmp_path, print),
        pytest.raises(LockHeldError, match=r"\.lock for 0\.3 s"),
        alone(tmp_path, tmp_path, said.append, 0.3),
    ):
        raise AssertionError("two at once")
    assert said == ["waits for another build"]


def test_modes_do_not_depend_on_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with plain_modes():
            (tmp_path / "folder").mkdir()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755
