"""Durations and quantities as Kubernetes writes them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from kybernate.api import Duration, Quantity
from kybernate.sizes import of_bytes

DURATIONS = [
    ("0", 0.0, "0s"),
    ("0s", 0.0, "0s"),
    ("60s", 60.0, "1m"),
    ("10m", 600.0, "10m"),
    ("1h30m", 5400.0, "1h30m"),
    ("1.5h", 5400.0, "1h30m"),
    ("200ms", 0.2, "200ms"),
    ("1m0.5s", 60.5, "1m0.5s"),
    ("250us", 0.00025, "250us"),
    ("1.5s", 1.5, "1.5s"),
    (".5s", 0.5, "500ms"),
    ("720h", 2592000.0, "720h"),
]


@pytest.mark.parametrize(("text", "seconds", "canonical"), DURATIONS)
def test_durations_are_read_and_written(text: str, seconds: float, canonical: str) -> None:
    duration = Duration.parse(text)
    assert duration == pytest.approx(seconds)
    assert str(duration) == canonical
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize("unit", ["h", "m", "s", "ms"])
def test_what_is_written_is_read_back_as_the_same_number(unit: str) -> None:
    """The controller compares what it wrote with what it would write: 1.1h was not the 1h6m it became."""
    read = [Duration.parse(f"{tenths / 10:g}{unit}") for tenths in range(1, 2000)]
    assert [each for each in read if Duration.parse(str(each)) != each] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("60", "a unit is missing"),
        ("1d", "24h"),
        ("-5s", "expected a duration"),
        ("", "expected a duration"),
        ("5 s", "expected a duration"),
        ("1h30", "expected a duration"),
        ("s", "expected a duration"),
        ("9999999h", "at most 100 years"),
    ],
)
def test_wrong_durations_are_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Duration.parse(text)


QUANTITIES = [
    ("20Gi", 20 * 1024**3, 20 * 1024**3 * 1000),
    ("500m", 1, 500),
    ("2", 2, 2000),
    ("0.1", 1, 100),
    ("1e3", 1000, 1000000),
    ("64M", 64_000_000, 64_000_000_000),
    ("1Ki", 1024, 1024000),
    ("1.5k", 1500, 1500000),
]


@pytest.mark.parametrize(("text", "whole", "milli"), QUANTITIES)
def test_quantities_are_read(text: str, whole: int, milli: int) -> None:
    quantity = Quantity(text)
    assert (quantity.whole, quantity.milli, str(quantity)) == (whole, milli, text)


def test_quantities_are_equal_where_the_amount_is() -> None:
    assert Quantity("1") == Quantity("1000m")
    assert len({Quantity("1Ki"), Quantity("1024")}) == 1
    assert Quantity("0.5").value == Decimal("0.5")


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1 Gi", "1GiB", "1e", "0x10", "ten", "9223372036854775808", "9E99"])
def test_wrong_quantities_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a quantity"):
        Quantity(text)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1023, "1023"), (1536, "1.5Ki"), (93 << 30, "93Gi"), (int(9.96 * 2**30), "10Gi"), (5 << 50, "5Pi")],
)
def test_bytes_are_written_as_people_read_them(number: int, text: str) -> None:
    assert of_bytes(number) == text
    assert abs(Quantity(text).whole - number) <= number / 20
