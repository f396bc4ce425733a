"""How answers look: tables and colours for people, JSON and YAML for programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from kybernate.sizes import of_bytes

FORMATS = ("table", "json", "yaml")

GREEN, YELLOW, RED, BLUE, DIM = 32, 33, 31, 36, 2


def add_format(parser: argparse.ArgumentParser) -> None:
    """The option -o."""
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="table is for people; default")


def colourful(stream: TextIO) -> bool:
    """Only on a terminal that has colours, and not where the person wants none (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: int | None, stream: TextIO | None = None) -> str:
    """`text` in `colour` where `stream` (stdout) shows colours."""
    if colour is None or not text or not colourful(stream or sys.stdout):
        return text
    return f"\033[{colour}m{text}\033[0m"


class Table:
    """Columns as wide as their widest cell; rows that come later keep the widths that were printed."""

    def __init__(self, header: Sequence[str]) -> None:
        self.header = list(header)
        self._widths = [len(name) for name in header]

    def lines(self, rows: Sequence[Sequence[str]], colours: Sequence[dict[int, int]] = ()) -> list[str]:
        """Header and rows; `colours` has for each row the colour of some of its cells."""
        for row in rows:
            self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)]
        header = self._line(self.header, {})
        return [header, *(self._line(row, colours[at] if colours else {}) for at, row in enumerate(rows))]

    def line(self, row: Sequence[str], colours: dict[int, int]) -> str:
        """One more row."""
        return self._line(row, colours)

    def _line(self, row: Sequence[str], colours: dict[int, int]) -> str:
        padded = [f"{cell:<{width}}" for cell, width in zip(row[:-1], self._widths, strict=False)] + [row[-1]]
        return "   ".join(paint(cell, colours.get(at)) for at, cell in enumerate(padded))


def print_data(data: Any, form: str) -> None:
    """`data` as JSON or YAML."""
    if form == "json":
        print(json.dumps(data, indent=2, ensure_ascii=False), flush=True)
        return
    import yaml  # 20 ms that tables and JSON need not pay

    print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="", flush=True)


def size(number_bytes: int) -> str:
    """`64Mi`, `1.2Gi`; `-` for nothing."""
    return of_bytes(number_bytes) if number_bytes > 0 else "-"


def span(seconds: float) -> str:
    """A length of time in at most two units: `42s`, `12m30s`, `3h5m`, `9d`."""
    whole = max(0, int(seconds))
    for unit_seconds, unit, lesser_seconds, lesser in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= unit_seconds:
            rest = whole % unit_seconds // lesser_seconds
            return f"{whole // unit_seconds}{unit}" + (f"{rest}{lesser}" if rest and whole < 10 * unit_seconds else "")
    return f"{whole}s"
