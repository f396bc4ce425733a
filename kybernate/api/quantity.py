"""Durations and quantities as Kubernetes writes them: `90s`, `1h30m`, `500m`, `20Gi`."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_SECOND = 1_000_000_000
_UNIT_NANOSECONDS = {
    "h": 3600 * _SECOND,
    "m": 60 * _SECOND,
    "s": _SECOND,
    "ms": 1_000_000,
    "us": 1000,
    "µs": 1000,
    "ns": 1,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|us|µs|ns|m|s)")
_DURATION = re.compile(f"(?:{_DURATION_PART.pattern})+")
LONGEST_DURATION_SECONDS = 100 * 366 * 24 * 3600.0

_SUFFIXES = {"n": "1e-9", "u": "1e-6", "m": "1e-3", "": "1", "k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12"}
_SUFFIXES |= {"P": "1e15", "E": "1e18"} | {f"{unit}i": str(1024**n) for n, unit in enumerate("KMGTPE", 1)}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:([eE][+-]?\d{1,2})|([numkMGTPE]|[KMGTPE]i)?)")


class Duration(float):
    """A length of time in seconds that remembers how to write itself: `str(Duration(5400))` is `1h30m`.

    What is written is read back as the very same number: who compares the two must not find them different.
    """

    @classmethod
    def parse(cls, text: str) -> Duration:
        """As Go's time.ParseDuration, without a sign. Raises ValueError saying what is expected."""
        if text == "0":
            return cls(0)
        if not _DURATION.fullmatch(text):
            hint = " (days are written as hours: 24h)" if re.fullmatch(r"[\d.]+d", text) else ""
            hint = hint or (" (a unit is missing)" if re.fullmatch(r"[\d.]+", text) else "")
            raise ValueError(f"expected a duration such as 60s, 10m or 1h30m, got {text!r}{hint}")
        nanoseconds = sum(Decimal(number) * _UNIT_NANOSECONDS[unit] for number, unit in _DURATION_PART.findall(text))
        if nanoseconds > LONGEST_DURATION_SECONDS * _SECOND:
            raise ValueError(f"expected a duration of at most 100 years, got {text!r}")
        return cls(int(nanoseconds) / _SECOND)

    def __str__(self) -> str:
        numerator, denominator = self.as_integer_ratio()
        nanoseconds = (2 * numerator * _SECOND + denominator) // (2 * denominator)  # to the nearest one, exactly
        if nanoseconds < _SECOND:
            return next((f"{nanoseconds // n}{u}" for n, u in _SMALL if nanoseconds and nanoseconds % n == 0), "0s")
        minutes, rest = divmod(nanoseconds, 60 * _SECOND)
        hours, minutes = divmod(minutes, 60)
        seconds = f"{Decimal(rest).scaleb(-9).normalize():f}"
        parts = ((hours, f"{hours}h"), (minutes, f"{minutes}m"), (rest, f"{seconds}s"))
        return "".join(text for number, text in parts if number)

    __repr__ = __str__


_SMALL = ((1_000_000, "ms"), (1_000, "us"), (1, "ns"))


MOST = 2**63 - 1
"""Kubernetes' own limit."""


class Quantity:
    """An amount of a resource. Equal where the amount is, however written; `str` gives it as it was written."""

    __slots__ = ("text", "value")

    def __init__(self, text: str) -> None:
        """Raises ValueError saying what is expected."""
        match = _QUANTITY.fullmatch(text)
        if match is None:
            raise ValueError(f"expected a quantity such as 500m, 2 or 20Gi, got {text!r}")
        number, exponent, suffix = match.groups()
        self.text = text
        self.value = Decimal(number + (exponent or "")) * Decimal(_SUFFIXES[suffix or ""])
        if self.value > MOST:
            raise ValueError(f"expected a quantity of at most {MOST}, got {text[:40]!r}")

    @property
    def whole(self) -> int:
        """Rounded up to a whole number: bytes of memory."""
        return int(self.value.to_integral_value(ROUND_CEILING))

    @property
    def milli(self) -> int:
        """Thousandths, rounded up: millicores of CPU."""
        return int((self.value * 1000).to_integral_value(ROUND_CEILING))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantity) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Quantity({self.text!r})"
