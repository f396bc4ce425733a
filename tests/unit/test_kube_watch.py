"""The watch's table of states and happenings, row by row."""

from __future__ import annotations

import pytest

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
