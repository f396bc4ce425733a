"""Manifests: YAML text of one or more documents, each a GpuWorkload."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from kybernate.api.decode import NULL, Decoder
from kybernate.api.gpuworkload import GpuWorkload
from kybernate.api.names import API_VERSION
from kybernate.api.problem import ManifestError, Place, Problems
from kybernate.api.rules import RULES

START = Place(1, 1)


def load(text: str, file_name: str) -> list[GpuWorkload]:
    """The workloads in `text`, in order; empty documents are passed over.

    Raises ManifestError with every problem found, each with line, column and field: all of the text is taken or none.
    `file_name` is what errors call the text; nothing is opened.
    """
    problems = Problems()
    workloads: list[GpuWorkload] = []
    seen: dict[str, int] = {}
    for document in _documents(text, problems):
        workload = _workload(document, problems)
        if workload is None:
            continue
        line = Place.of(document).line
        if workload.name in seen:
            message = f"{workload.name} is given twice, first in the document at line {seen[workload.name]}"
            problems.add(Place.of(document), "metadata.name", message)
        seen.setdefault(workload.name, line)
        workloads.append(workload)
    if not workloads and not problems.found:
        problems.add(START, "", "no GpuWorkload in it")
    if problems.found:
        raise ManifestError(file_name, problems.found)
    return workloads


def dump(workload: GpuWorkload) -> str:
    """YAML of `workload`, defaults written out; `load` of it gives an equal workload."""
    fields = _without_nothing(msgspec.to_builtins(workload, enc_hook=str))
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _documents(text: str, problems: Problems) -> list[yaml.Node]:
    found: list[yaml.Node] = []
    try:
        # extend keeps what came before an error
        found.extend(node for node in yaml.compose_all(text, yaml.SafeLoader) if node is not None and node.tag != NULL)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else START
        context = f" ({error.context})" if error.context else ""
        problems.add(place, "", f"not YAML: {error.problem}{context}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.add(Place(line, 1), "", f"not YAML: the character {error.character!r} is not allowed")
    except RecursionError:
        problems.add(START, "", "not a manifest: nested too deeply")
    return found


def _workload(document: yaml.Node, problems: Problems) -> GpuWorkload | None:
    """One document; None where it has problems, which are then in `problems`."""
    before = len(problems.found)
    decoder = Decoder(problems)
    entries = decoder.entries(document, "")
    if len(problems.found) > before and not entries:
        return None
    for name, wanted in (("apiVersion", API_VERSION), ("kind", "GpuWorkload")):
        if name not in entries:
            problems.add(Place.of(document), name, f"is required: {wanted}")
        elif entries[name][1].value != wanted:
            problems.add(Place.of(entries[name][1]), name, f"expected {wanted}, got {entries[name][1].value!r}")
    if len(problems.found) > before:
        return None
    workload: GpuWorkload | None = decoder.decode(document, GpuWorkload, "")
    if workload is None:
        return None
    for rule in RULES:
        for path, message in rule(workload):
            problems.add(_place(decoder.places, path), path, message)
    return workload


def _place(places: dict[str, Place], path: str) -> Place:
    """Where the field stands, or the nearest one around it that was written."""
    while path and path not in places:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return places.get(path, START)


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nothing(inner) for name, inner in value.items() if inner is not None}
    return [_without_nothing(inner) for inner in value] if isinstance(value, (list, tuple)) else value
