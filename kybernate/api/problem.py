"""What is wrong with a manifest, and where: `chat.yaml:9:18: spec.idle.parkAfter: needs suspendAfter`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import yaml

from kybernate.errors import InvalidError


class Place(NamedTuple):
    """Line and column, both counted from 1."""

    line: int
    column: int

    @classmethod
    def of(cls, node: yaml.Node) -> Place:
        mark = node.start_mark
        return cls(mark.line + 1, mark.column + 1)


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong. `field` is the path from the document's root; empty where it is the document."""

    place: Place
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ManifestError(InvalidError):
    """{message}"""

    def __init__(self, file_name: str, problems: Sequence[Problem]) -> None:
        """`problems`: at least one; the message has a line for each, ordered by place."""
        self.file_name = file_name
        self.problems = sorted(problems)
        super().__init__("\n".join(f"{file_name}:{p.place.line}:{p.place.column}: {p}" for p in self.problems))


class Problems:
    """Collects what is wrong, so that a person learns all of it at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, place: Place, field: str, message: str) -> None:
        self.found.append(Problem(place, field, message))
