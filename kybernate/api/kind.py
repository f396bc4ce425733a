"""What every type of a manifest has in common.

A type is a msgspec Struct: its fields (camel case in YAML) with their descriptions are the single source that the
loader checks against, and that CRDs and docs are made of. Beside its fields a type may know names that it refuses:

- `refused`: fields that a person may well write, each with the reason why they are refused here;
- `of_kubernetes`: further fields that Kubernetes has at this place, all refused for want of a cluster.

Any other name is unknown.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

NOT_YET = "not supported yet"
WITHOUT_CLUSTER = "not without a cluster yet"


class Fields(msgspec.Struct, rename="camel", kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A mapping in a manifest."""

    refused: ClassVar[dict[str, str]] = {}
    of_kubernetes: ClassVar[frozenset[str]] = frozenset()


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

Port = Annotated[int, Meta(ge=1, le=65535, extra={"expected": "a port, 1 to 65535"})]

AbsolutePath = Annotated[str, Meta(pattern="^/", extra={"expected": "a path that begins with /"})]

UserId = Annotated[int, Meta(ge=0, le=2**31 - 1, extra={"expected": "an id of 0 or more"})]
"""Of a user or a group; Kubernetes' own range."""
