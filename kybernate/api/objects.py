"""What every object of a cluster has in common, as our programs read it: metadata, owners, conditions.

Objects are read leniently (a newer API server may send more than we know) and only the fields that somebody uses are
kept: a controller holds ten thousand of them. What a person writes is checked elsewhere: by the CRDs' schemas, and by
`manifest.load` where there is no cluster.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec

from kybernate.api.kind import Rule, says
from kybernate.api.quantity import Duration, Quantity

T = TypeVar("T")


class Object(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """A mapping in an object of a cluster; unknown fields are passed over."""

    rules: ClassVar[tuple[Rule, ...]] = ()
    open: ClassVar[bool] = False
    """The API server keeps fields that are not listed, unseen."""


Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""As RFC 3339 writes it, in UTC."""


class OwnerReference(Object, kw_only=True):
    """Whom an object belongs to; Kubernetes' garbage collector follows it."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class Metadata(Object, kw_only=True):
    """Name and bookkeeping of an object; times as RFC 3339 text."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    owner_references: list[OwnerReference] = msgspec.field(default_factory=list)
    finalizers: list[str] = msgspec.field(default_factory=list)


class Condition(Object, kw_only=True):
    """One thing that holds, or does not: Kubernetes' own shape."""

    type: Annotated[str, says("What it is about; one condition of each type.", min_length=1)]
    status: Annotated[Literal["True", "False", "Unknown"], says("Whether it holds.")]
    reason: Annotated[str, says("Why, in one word, for programs.")] = ""
    message: Annotated[str, says("Why, and what to do, for people.")] = ""
    last_transition_time: Annotated[Time, says("Since when `status` is so.")] = ""
    observed_generation: Annotated[int, says("Of the spec that it is about.")] = 0


Conditions = Annotated[
    list[Condition],
    says(
        "What holds of it; `kubectl wait --for=condition=<type>` waits for one.",
        extra_json_schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]


def decode(raw: bytes | msgspec.Raw, kind: type[T]) -> T:
    """`raw` JSON as `kind`. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(raw, type=kind, dec_hook=_read)


def encode(value: Any) -> bytes:
    """JSON of an object; fields that have their default are left out."""
    return msgspec.json.encode(value, enc_hook=str)


def builtins(value: Any) -> Any:
    """Dicts, lists and scalars of an object, as `encode` would write them."""
    return msgspec.to_builtins(value, enc_hook=_write)


def _write(value: Any) -> Any:
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else str(value)


def _read(kind: type, value: Any) -> Any:
    if kind is Duration:
        return _duration(value)
    if kind is Quantity:
        return Quantity(str(value))
    raise NotImplementedError(kind)


@functools.lru_cache(1024)
def _duration(text: str) -> Duration:
    """Ten thousand workloads have the same few."""
    return Duration.parse(text)
