"""The CustomResourceDefinitions, made from the types: `python -m kybernate.api.crd` writes `crds/`.

    type of a kind --msgspec's description of it--> structural schema \\
    RESOURCE of the kind (names, columns, scale)  ---------------------+--> crds/<plural>.yaml

A schema says what the type says: descriptions, defaults, enums, bounds, and the type's `rules` in CEL. Where a type is
`open` the API server keeps what the schema does not list; anywhere else it refuses it (or prunes it, for clients that
do not ask for strict validation). Status has no defaults: nothing is to be read there that nobody observed.
"""

from __future__ import annotations

import argparse
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import yaml
from msgspec import inspect

from kybernate.api import gpucheckpoint, gpuinstance, gpunode, gpurestorejob, gpuworkload, names
from kybernate.api.quantity import LONGEST_DURATION_SECONDS, Duration
from kybernate.api.resource import Column, CustomResource

KINDS: tuple[CustomResource, ...] = (
    gpuworkload.RESOURCE,
    gpuinstance.RESOURCE,
    gpucheckpoint.RESOURCE,
    gpurestorejob.RESOURCE,
    gpunode.RESOURCE,
)
FOLDER = Path(__file__).parents[2] / "crds"
HEADER = "# Made by `python -m kybernate.api.crd` from the types in kybernate/api.\n"

Schema = dict[str, Any]

_PART = "([0-9]+([.][0-9]*)?|[.][0-9]+)(h|ms|us|µs|ns|m|s)"
_LONGEST = f"{LONGEST_DURATION_SECONDS / 3600:.0f}h"
DURATION: Schema = {
    "type": "string",
    "maxLength": 32,
    # A rule and no pattern: it says what is expected, not a regular expression.
    "x-kubernetes-validations": [
        {
            "rule": f"self.matches('^(0|({_PART})+)$') && duration(self) <= duration('{_LONGEST}')",
            "message": "expected a duration such as 60s, 10m or 1h30m, of at most 100 years",
        }
    ],
}
_STANDARD: Schema = {
    "apiVersion": {"type": "string", "description": f"{names.API_VERSION}"},
    "kind": {"type": "string", "description": "This kind."},
    "metadata": {"type": "object"},
}


def definition(resource: CustomResource) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind."""
    version: dict[str, Any] = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in resource.columns],
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema(resource)},
    }
    if resource.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in resource.selectable]
    if resource.scale:
        version["subresources"]["scale"] = {
            "specReplicasPath": resource.scale.spec_replicas,
            "statusReplicasPath": resource.scale.status_replicas,
            "labelSelectorPath": resource.scale.selector,
        }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short],
                "categories": ["kybernate"],
            },
            "versions": [version],
        },
    }


def schema(resource: CustomResource) -> Schema:
    """The structural schema of one kind."""
    root = inspect.type_info(resource.type)
    assert isinstance(root, inspect.StructType)
    found = _struct(root, defaults=True)
    for field in root.fields:
        if field.encode_name == "status":
            found["properties"]["status"] = _schema(field.type, defaults=False)
    found["properties"] = {**_STANDARD, **{n: s for n, s in found["properties"].items() if n not in _STANDARD}}
    found["required"] = [name for name in found.get("required", ()) if name not in _STANDARD]
    return found if found["required"] else {name: part for name, part in found.items() if name != "required"}


def text(resource: CustomResource) -> str:
    """The YAML of one kind, as `crds/` has it."""
    return HEADER + yaml.dump(definition(resource), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def write(folder: Path) -> None:
    """All kinds into `folder`, one file each, called after the kind's plural."""
    folder.mkdir(exist_ok=True)
    for resource in KINDS:
        (folder / f"{resource.plural}.yaml").write_text(text(resource))


class _Dumper(yaml.SafeDumper):
    """Without anchors: nobody should have to look elsewhere in a schema."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _column(column: Column) -> dict[str, Any]:
    wide = {"priority": 1} if column.wide else {}
    return {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.path,
        "description": column.description,
        **wide,
    }


def _struct(kind: inspect.StructType, defaults: bool) -> Schema:
    found: Schema = {"type": "object", "description": cleandoc(kind.cls.__doc__ or "")}
    found["properties"] = {}
    written = {info.encode_name: info.type for info in msgspec.structs.fields(kind.cls)}
    for field in kind.fields:
        part = _schema(field.type, defaults)
        if "enum" in part:
            part["enum"] = list(_choices(written[field.encode_name]))
        if defaults and (default := _default(field, part)) is not None:
            part["default"] = default
        found["properties"][field.encode_name] = part
    if required := [field.encode_name for field in kind.fields if field.required]:
        found["required"] = required
    if getattr(kind.cls, "open", False):
        found["x-kubernetes-preserve-unknown-fields"] = True
    if rules := getattr(kind.cls, "rules", ()):
        found["x-kubernetes-validations"] = [
            {"rule": rule.cel, "message": rule.message, **({"fieldPath": rule.field} if rule.field else {})}
            for rule in rules
        ]
    return found


def _schema(kind: inspect.Type, defaults: bool) -> Schema:
    match kind:
        case inspect.Metadata(inner, extra_json_schema, extra):
            shape = (extra or {}).get("shape")
            found = _schema(inspect.type_info(shape) if shape else inner, defaults) | (extra_json_schema or {})
            first = {name: found.pop(name) for name in ("type", "description") if name in found}
            return first | found
        case inspect.UnionType(types):
            options = [option for option in types if not isinstance(option, inspect.NoneType)]
            if len(options) == 1:
                return _schema(options[0], defaults)
            return {"x-kubernetes-int-or-string": True}
        case inspect.StructType():
            return _struct(kind, defaults)
        case inspect.ListType(item) | inspect.VarTupleType(item):
            lengths = _given(minItems=kind.min_length, maxItems=kind.max_length)
            return {"type": "array", "items": _schema(item, defaults)} | lengths
        case inspect.DictType(_, value):
            most = _given(maxProperties=kind.max_length)
            return {"type": "object", "additionalProperties": _schema(value, defaults)} | most
        case inspect.LiteralType(values):
            return {"type": "string", "enum": list(values)}
        case inspect.CustomType(cls) if cls is Duration:
            return dict(DURATION)
    return _scalar(kind)


def _scalar(kind: inspect.Type) -> Schema:
    match kind:
        case inspect.StrType(minimum, maximum, pattern):
            return {"type": "string"} | _given(minLength=minimum, maxLength=maximum, pattern=pattern)
        case inspect.IntType(ge=least, le=most):
            size = "int64" if most is None else "int32"
            return {"type": "integer", "format": size} | _given(minimum=least, maximum=most)
        case inspect.FloatType():
            return {"type": "number"}
        case inspect.BoolType():
            return {"type": "boolean"}
    raise TypeError(f"no schema for {kind}")


def _choices(kind: Any) -> tuple[Any, ...]:
    """Of a Literal in `kind`, in the order in which they are written; msgspec sorts them."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((found for part in get_args(kind) if (found := _choices(part))), ())


def _given(**constraints: Any) -> Schema:
    return {name: value for name, value in constraints.items() if value is not None}


def _default(field: inspect.Field, part: Schema) -> Any:
    """What the API server writes where nothing is given: a scalar, or {} where something inside has a default."""
    if field.required or part.get("x-kubernetes-int-or-string"):
        return None
    if part["type"] == "object" and any("default" in inner for inner in part.get("properties", {}).values()):
        return None if field.default is None else {}
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(default, Duration):
        return str(default)
    return default if isinstance(default, (bool, int, float)) or (isinstance(default, str) and default) else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kybernate.api.crd", description="Write the CRDs.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
