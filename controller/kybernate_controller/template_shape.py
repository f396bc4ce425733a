"""What a pod template must look like where it is added to. The CRD keeps a template as it is written, slips and all,
and the API server judges the pod that is made of it: before there is one, these fields must be what they are taken for.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from kybernate.api.objects import Object

Anything = dict[str, Any]


class _Port(Object, kw_only=True):
    protocol: str | None = None


class _Resources(Object, kw_only=True):
    limits: Anything | None = None
    requests: Anything | None = None


class _Container(Object, kw_only=True):
    name: str | None = None
    ports: list[_Port] | None = None
    resources: _Resources | None = None


class _Gate(Object, kw_only=True):
    condition_type: str | None = None


class _Toleration(Object, kw_only=True):
    key: str | None = None
    effect: str | None = None


class _Term(Object, kw_only=True):
    match_fields: list[Any] | None = None


class _Selector(Object, kw_only=True):
    node_selector_terms: list[_Term] | None = None


class _NodeAffinity(Object, kw_only=True):
    required: _Selector | None = msgspec.field(name="requiredDuringSchedulingIgnoredDuringExecution", default=None)


class _Affinity(Object, kw_only=True):
    node_affinity: _NodeAffinity | None = None


class _Spec(Object, kw_only=True):
    containers: list[_Container] | None = None
    readiness_gates: list[_Gate] | None = None
    tolerations: list[_Toleration] | None = None
    affinity: _Affinity | None = None


class _Metadata(Object, kw_only=True):
    labels: Anything | None = None
    annotations: Anything | None = None


class _Template(Object, kw_only=True):
    metadata: _Metadata | None = None
    spec: _Spec | None = None


def slip(template: Any) -> str:
    """The first field that is of another type than a pod's; empty where all that is looked at is well."""
    try:
        msgspec.convert(template, _Template)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        expected = re.sub(r"`([a-z]+)(?: \| null)?`", r"\1", what)
        return f"spec.template{where.rstrip('`')}: {expected[0].lower()}{expected[1:]}"
    return ""
