"""The watch's table of states and happenings, row by row."""

from __future__ import annotations

import pytest

from kybernate.kube.lines import Lines
from kybernate.kube.watch import (
    Broken,
    Doubting,
    Ended,
    Expired,
    Failed,
    Following,
    Happening,
    Listed,
    Probed,
    Silent,
    State,
    Told,
    Unlisted,
    after,
    older,
)

TABLE: list[tuple[State, Happening, State]] = [
    (Unlisted(), Listed("5"), Following("5")),
    (Unlisted(), Failed(), Unlisted()),
    (Unlisted(), Expired(), Unlisted()),
    (Unlisted(), Silent(), Unlisted()),
    (Following("5"), Told("6"), Following("6")),
    (Following("5"), Told("5"), Following("5")),
    (Following("5"), Told("4"), Unlisted()),
    (Following("9"), Told("10"), Following("10")),
    (Following("5"), Ended(), Following("5")),
    (Following("5"), Broken(), Doubting("5")),
    (Following("5"), Failed(), Doubting("5")),
    (Following("5"), Expired(), Unlisted()),
    (Following("5"), Silent(), Unlisted()),
    (Doubting("5"), Probed("5"), Following("5")),
    (Doubting("5"), Probed("70"), Following("5")),
    (Doubting("5"), Probed("4"), Unlisted()),
    (Doubting("5"), Failed(), Doubting("5")),
    (Doubting("5"), Expired(), Unlisted()),
    (Doubting("5"), Silent(), Unlisted()),
]


@pytest.mark.parametrize(("state", "happening", "becomes"), TABLE, ids=str)
def test_the_table(state: State, happening: Happening, becomes: State) -> None:
    assert after(state, happening) == becomes


@pytest.mark.parametrize(
    ("version", "known", "is_older"),
    [("9", "10", True), ("10", "9", False), ("7", "7", False), ("", "7", False), ("a", "b", False)],
)
def test_versions_are_compared_as_numbers_or_not_at_all(version: str, known: str, is_older: bool) -> None:
    assert older(version, known) is is_older


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 100])
def test_lines_come_whole_whatever_the_pieces(size: int) -> None:
    text = '{"a":"ä€𝄞"}\n\n{"b":"\\n"}\n{"c":1}\r\n{"half":'.encode()
    lines = Lines(100)
    found = [line for start in range(0, len(text), size) for line in lines.feed(text[start : start + size])]
    assert found == ['{"a":"ä€𝄞"}'.encode(), b'{"b":"\\n"}', b'{"c":1}\r']
    assert lines.feed(b"2}\n") == [b'{"half":2}']


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    lines = Lines(10)
    assert lines.feed(b"0123456789") == []
    with pytest.raises(OverflowError):
        lines.feed(b"0")
