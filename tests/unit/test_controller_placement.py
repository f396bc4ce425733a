"""Which nodes can take no new instance, by what their agents say."""

from __future__ import annotations

import pytest
from controller_objects import gn
from kybernate_controller import placement
from kybernate_controller.objects import GpuNode, Meta


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (gn(), ""),
        (gn(ready="CannotPark"), "CannotPark"),
        (gn(ready="CannotPark", free="0"), "CannotPark"),
        (gn(free="1Gi"), ""),
        (gn(free="1023Mi"), "StoreFull"),
        (gn(free="0"), "StoreFull"),
        (gn(free="93.5Gi"), ""),
        (gn(free=""), ""),
        (gn(free="much"), ""),
        (GpuNode(metadata=Meta(name="n1")), ""),
    ],
)
def test_refusal(node: GpuNode, why: str) -> None:
    assert placement.refusal(node) == why
    assert placement.refuses(node) == (bool(why),)


def test_what_is_said_of_many_is_short_and_always_the_same() -> None:
    ill = [gn(f"n{number}", ready="CannotPark") for number in (3, 1, 2, 0)]
    avoid = placement.avoided([*ill, gn("well")])
    assert list(avoid) == ["n0", "n1", "n2", "n3"]
    assert placement.said(avoid) == ", not on n0 (CannotPark), n1 (CannotPark), n2 (CannotPark) and 1 more"
    assert placement.said({}) == ""
