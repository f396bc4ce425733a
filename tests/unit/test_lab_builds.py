"""What is made once is made by one at a time."""

from __future__ import annotations

import threading
from pathlib import Path

from kybernate.lab.builds import alone


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
