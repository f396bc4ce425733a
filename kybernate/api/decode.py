"""From the nodes of a YAML document to a type of this API, remembering where each field stands.

YAML is read as its nodes and not as values, because nodes know line and column, and because the wanted type decides
what a scalar may be: `name: 8080` is refused as Kubernetes does, not quietly made a text. Every problem is collected;
a part that has one is left out of the result, which is then None.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import yaml

from kybernate.api.kind import WITHOUT_CLUSTER, Fields
from kybernate.api.problem import Place, Problems
from kybernate.api.quantity import Duration, Quantity

NULL = "tag:yaml.org,2002:null"
MERGE = "tag:yaml.org,2002:merge"
_WORDS = {"str": "text", "int": "a whole number", "bool": "true or false", "float": "a number", "null": "nothing"}
_CONSTRAINTS = ("ge", "le", "pattern", "min_length", "max_length")
_NOTES = (*_CONSTRAINTS, "extra")
_CONSTRUCTOR = yaml.constructor.SafeConstructor()


class Decoder:
    """Decodes one document. `places` maps the path of each field that was written to where it stands."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.places: dict[str, Place] = {}

    def decode(self, node: yaml.Node, kind: Any, path: str) -> Any:
        """The value of `node` as `kind`; None where it has problems, or is null and may be."""
        self.places.setdefault(path, Place.of(node))
        inner, meta = _unwrap(kind)
        if isinstance(inner, type) and issubclass(inner, Fields):
            return self._fields(node, inner, path)
        if get_origin(inner) is tuple:
            return self._list(node, inner, meta, path)
        if get_origin(inner) is dict:
            return self._dict(node, get_args(inner)[1], path)
        return self._scalar(node, inner, meta, path)

    def entries(self, node: yaml.Node, path: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The keys and values of a mapping; not a mapping, keys that are no text and double keys are problems."""
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        if not isinstance(node, yaml.MappingNode):
            self.problems.add(Place.of(node), path, f"expected a mapping, got {_what(node)}")
            return found
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if key.tag == MERGE:
                self.problems.add(Place.of(key), path, "merge keys (<<) are not supported; write the fields out")
            elif not isinstance(key, yaml.ScalarNode) or not name:
                self.problems.add(Place.of(key), path, f"expected a name, got {_what(key)}")
            elif name in found:
                first = found[name][0].start_mark.line + 1
                self.problems.add(Place.of(key), join(path, name), f"is given twice, first in line {first}")
            else:
                found[name] = (key, value)
        return found

    def _fields(self, node: yaml.Node, kind: type[Fields], path: str) -> Any:
        before = len(self.problems.found)
        known = {info.encode_name: info for info in msgspec.structs.fields(kind)}
        values: dict[str, Any] = {}
        entries = self.entries(node, path)
        for name, (key, value) in entries.items():
            at = join(path, name)
            if name not in known:
                self.problems.add(Place.of(key), at, _why_not(name, kind, known))
            elif value.tag != NULL:
                self.places[at] = Place.of(value)
                values[known[name].name] = self.decode(value, known[name].type, at)
        for info in known.values():
            if info.required and info.name not in values and (isinstance(node, yaml.MappingNode)):
                self.problems.add(Place.of(node), join(path, info.encode_name), "is required")
        return kind(**values) if len(self.problems.found) == before else None

    def _list(self, node: yaml.Node, kind: Any, meta: dict[str, Any], path: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return self.problems.add(Place.of(node), path, f"expected a list, got {_what(node)}")
        if len(node.value) < meta.get("min_length", 0):
            return self.problems.add(Place.of(node), path, "expected at least one")
        kind = get_args(kind)[0]
        return tuple(self.decode(item, kind, f"{path}[{index}]") for index, item in enumerate(node.value))

    def _dict(self, node: yaml.Node, kind: Any, path: str) -> Any:
        entries = self.entries(node, path)
        return {name: self.decode(value, kind, f"{path}[{name}]") for name, (_, value) in entries.items()}

    def _scalar(self, node: yaml.Node, kind: Any, meta: dict[str, Any], path: str) -> Any:
        try:
            if not isinstance(node, yaml.ScalarNode):
                raise ValueError(f"expected a single value, got {_what(node)}")
            value = _value(node)
            if kind in (Duration, Quantity):
                return _parsed(value, kind, node)
            return _checked(value, kind, meta, node)
        except ValueError as error:
            return self.problems.add(Place.of(node), path, str(error))


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean ...?` where one of `names` looks like `name`, else nothing."""
    plain = {re.sub("[-_.]", "", candidate).lower(): candidate for candidate in names}
    close = difflib.get_close_matches(re.sub("[-_.]", "", name).lower(), plain, 1, 0.7)
    return f". Did you mean {plain[close[0]]}?" if close else ""


def _why_not(name: str, kind: type[Fields], known: Iterable[str]) -> str:
    if name in kind.refused:
        return kind.refused[name]
    if name in kind.of_kubernetes:
        return WITHOUT_CLUSTER
    return f"unknown field{nearest(name, [*known, *kind.refused, *kind.of_kubernetes])}"


def _unwrap(kind: Any) -> tuple[Any, dict[str, Any]]:
    """A type without Annotated and without `| None`, and the constraints of all its layers."""
    meta: dict[str, Any] = {}
    while True:
        if get_origin(kind) is Annotated:
            kind, *notes = get_args(kind)
            for note in notes:
                meta |= {name: value for name in _NOTES if (value := getattr(note, name)) is not None}
        elif get_origin(kind) in (Union, types.UnionType):
            (kind,) = (option for option in get_args(kind) if option is not type(None))
        else:
            return kind, meta


def _value(node: yaml.ScalarNode) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind in ("int", "float") and ":" in node.value:
        return node.value  # 1:30 is a number to the base of 60 in YAML 1.1, and text to Kubernetes
    if kind in ("int", "float", "bool", "null"):
        try:
            return getattr(_CONSTRUCTOR, f"construct_yaml_{kind}")(node)
        except (ValueError, LookupError):  # `!!int x`, `!!bool maybe`, a number of 5000 digits
            raise ValueError(f"{node.value[:60]!r} is not {_WORDS[kind]}") from None
    if kind in ("str", "timestamp", "value"):
        return node.value
    raise ValueError(f"the YAML tag {node.tag} is not supported")


def _parsed(value: Any, kind: Any, node: yaml.ScalarNode) -> Any:
    if isinstance(value, bool) or value is None or (kind is Duration and not isinstance(value, (str, int))):
        raise ValueError(f"expected a {kind.__name__.lower()}, got {_what(node)}")
    return Duration.parse(str(value)) if kind is Duration else Quantity(node.value)


def _checked(value: Any, kind: Any, meta: dict[str, Any], node: yaml.ScalarNode) -> Any:
    expected = meta.get("extra", {}).get("expected", "")
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        choices = ", ".join(map(str, get_args(kind)))
        raise ValueError(f"expected {choices}, got {_what(node)}")
    if type(value) is not kind:
        quote_it = "; put it in quotes" if kind is str and value is not None else ""
        raise ValueError(f"expected {expected or _WORDS[kind.__name__]}, got {_what(node)}{quote_it}")
    constraints = {name: meta[name] for name in _CONSTRAINTS if name in meta}
    try:
        return msgspec.convert(value, Annotated[kind, msgspec.Meta(**constraints)])
    except msgspec.ValidationError:
        expected = expected or (f"at least {meta['ge']}" if "ge" in meta else "some text")
        raise ValueError(f"expected {expected}, got {_what(node)}") from None


def _what(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if node.tag == NULL:
        return "nothing"
    text = node.value if len(node.value) <= 60 else f"{node.value[:57]}..."
    kind = {"int": "the number ", "float": "the number ", "bool": ""}.get(node.tag.rsplit(":", 1)[-1])
    return f"{kind}{text}" if kind is not None else repr(text)
