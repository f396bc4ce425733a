"""The reference of kinds and names in docs/design: `python -m kybernate.api.reference` writes it anew.

What stands between `<!-- made: X -->` and `<!-- end -->` is made here, of the types (X is a kind) or of names.py (X is
`names`); the rest of the file is written by hand and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

from kybernate.api import crd, names
from kybernate.api.resource import Column, CustomResource

FILE = Path(__file__).parents[2] / "docs" / "design" / "03_K8S_COMPONENTS.md"

_MADE = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NAME = re.compile(r'^(?P<constant>[A-Z_]+) = f"\{GROUP\}/[^"]+"\n(?:"""(?P<says>.*?)""")?', re.DOTALL | re.MULTILINE)


def made(text: str) -> str:
    """`text` with its made parts as they should be. Raises KeyError where one is called what nothing is."""
    parts = {resource.kind: kind(resource) for resource in crd.KINDS} | {"names": of_names()}
    return _MADE.sub(lambda match: f"{match[1]}{parts[match[2]]}{match[3]}", text)


def kind(resource: CustomResource) -> str:
    """Everything about one kind, as Markdown."""
    schema = crd.schema(resource)
    scope = "namespaced" if resource.namespaced else "cluster-scoped"
    lines = [f"{schema['description']} `{resource.plural}.{names.GROUP}`, short `{resource.short}`, {scope}.", ""]
    lines += [f"`kubectl get {resource.short}`: {_columns(resource.columns, wide=False)}."]
    if wide := _columns(resource.columns, wide=True):
        lines += [f"With `-o wide` also {wide}."]
    if resource.selectable:
        lines += [f"Field selectors: {', '.join(f'`{path[1:]}`' for path in resource.selectable)}."]
    for part in ("spec", "status"):
        if part in schema["properties"]:
            lines += ["", "| field | type | default | |", "|---|---|---|---|"]
            lines += [*_rows(part, schema["properties"][part])]
    if rules := [*_rules("", schema)]:
        lines += ["", "Refused, with these words:", "", *rules]
    return "\n".join(lines) + "\n"


def of_names() -> str:
    """Annotations, labels, conditions and finalizers, as Markdown, by who sets them."""
    source = (Path(__file__).parent / "names.py").read_text()
    lines: list[str] = []
    for section in re.split(r"^# ", source, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        rows = [
            f"| `{getattr(names, match['constant'])}` | {_cell(' '.join(cleandoc(match['says'] or '').split()))} |"
            for match in _NAME.finditer(body)
        ]
        if rows:
            lines += [title, "", "| name | |", "|---|---|", *rows, ""]
    return "\n".join(lines[:-1]) + "\n"


def write(file: Path) -> None:
    file.write_text(made(file.read_text()))


def _columns(columns: tuple[Column, ...], wide: bool) -> str:
    return ", ".join(f"`{column.name.upper()}`" for column in columns if column.wide == wide)


def _rows(path: str, schema: crd.Schema, required: bool = False) -> Iterator[str]:
    default = schema.get("default")
    shown = "" if default in (None, {}) else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    name = f"`{path}`" if "." in path else f"**`{path}`**"
    star = r"\*" if required else ""
    yield f"| {name}{star} | {_type(schema)} | {shown} | {_cell(schema.get('description', ''))} |"
    if path == "status.conditions":
        return  # Kubernetes' own shape
    inner = schema.get("items", schema)
    below = path if inner is schema else f"{path}[]"
    for field, part in inner.get("properties", {}).items():
        yield from _rows(f"{below}.{field}", part, field in inner.get("required", ()))


def _type(schema: crd.Schema) -> str:
    if schema.get("x-kubernetes-validations") == crd.DURATION["x-kubernetes-validations"]:
        return "duration"
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    match schema.get("type", "integer or string"):
        case "array":
            return f"list of {_type(schema['items'])}".removesuffix(" of ")
        case "object" if "additionalProperties" in schema:
            return f"{_type(schema['additionalProperties'])} by name"
        case "object":
            return ""
        case "string" if schema.get("format") == "date-time":
            return "time"
        case other:
            return str(other)


def _rules(path: str, schema: crd.Schema) -> Iterator[str]:
    if schema.get("x-kubernetes-validations") != crd.DURATION["x-kubernetes-validations"]:
        for rule in schema.get("x-kubernetes-validations", ()):
            field = f"{path}{rule.get('fieldPath', '')}".lstrip(".")
            yield f"- `{field}`: {rule['message']}" if field else f"- {rule['message']}"
    for name, part in schema.get("properties", {}).items():
        yield from _rules(f"{path}.{name}", part)
    if "items" in schema:
        yield from _rules(f"{path}[]", schema["items"])


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


if __name__ == "__main__":
    write(FILE)
