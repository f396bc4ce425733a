"""What every type of a manifest has in common.

A type is a msgspec Struct: its fields (camel case in YAML) with their descriptions are the single source that the
loader checks against, and that CRDs and docs are made of. Beside its fields a type may know names that it refuses:

- `refused`: fields that a person may well write, each with the reason why they are refused here;
- `of_kubernetes`: further fields that Kubernetes has at this place, all refused for want of a cluster.

Any other name is unknown. `rules` hold between fields where a cluster checks them; `manifest.load` has its own
(rules.py), which see more and can say more.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, NamedTuple

import msgspec
from msgspec import Meta

NOT_YET = "not supported yet"
WITHOUT_CLUSTER = "not without a cluster yet"


class Rule(NamedTuple):
    """What must hold between fields, as the API server checks it."""

    cel: str
    """True where it holds; `self` is the mapping, `oldSelf` what it was before (such a rule is for changes only)."""
    message: str
    """What is said where it does not hold."""
    field: str = ""
    """The field that it is said of, from `self` on: `.parkAfter`; empty: the mapping itself."""


class Fields(msgspec.Struct, rename="camel", kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A mapping in a manifest."""

    refused: ClassVar[dict[str, str]] = {}
    of_kubernetes: ClassVar[frozenset[str]] = frozenset()
    rules: ClassVar[tuple[Rule, ...]] = ()


def says(description: str, **constraints: Any) -> Meta:
    """The description of a field, as docs and `kubectl explain` show it, with its constraints."""
    return Meta(description=description, **constraints)


def _dns_label(longest: int) -> Meta:
    """RFC 1123."""
    return Meta(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        min_length=1,
        max_length=longest,
        extra={"expected": f"a name of lower case letters, digits and '-', at most {longest} long"},
    )


Label = Annotated[str, _dns_label(63)]
"""A DNS label."""

ShortLabel = Annotated[str, _dns_label(57)]
"""A DNS label to which `-<ordinal>` can be appended."""

Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""Of an object of Kubernetes."""

Port = Annotated[int, Meta(ge=1, le=65535, extra={"expected": "a port, 1 to 65535"})]

AbsolutePath = Annotated[str, Meta(pattern="^/", extra={"expected": "a path that begins with /"})]

UserId = Annotated[int, Meta(ge=0, le=2**31 - 1, extra={"expected": "an id of 0 or more"})]
"""Of a user or a group; Kubernetes' own range."""

UNIQUE = {"x-kubernetes-list-type": "set"}
"""Of a list: the API server refuses what is given twice."""
