"""The reference of the kinds in docs/design: made of the types, and whole."""

from __future__ import annotations

import pytest

from kybernate.api import crd, names, reference


def test_what_is_committed_is_what_the_types_make() -> None:
    text = reference.FILE.read_text()
    assert text == reference.made(text)
    for resource in crd.KINDS:
        assert f"<!-- made: {resource.kind} -->\n{reference.kind(resource)}<!-- end -->" in text


def test_a_part_that_nothing_is_called_is_said() -> None:
    with pytest.raises(KeyError, match="GpuThing"):
        reference.made("<!-- made: GpuThing -->\n<!-- end -->")


def test_every_name_of_our_group_is_there_with_its_meaning() -> None:
    values = {v for k, v in vars(names).items() if isinstance(v, str) and v.startswith(f"{names.GROUP}/")}
    table = reference.of_names()
    for name in values - {names.API_VERSION}:
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert len(row.removeprefix(f"| `{name}` |").strip(" |")) > 10


def test_a_row_tells_a_fields_type_default_and_meaning() -> None:
    (workload,) = (resource for resource in crd.KINDS if resource.kind == "GpuWorkload")
    made = reference.kind(workload)
    assert "| `spec.replicas` | integer | `1` | Instances that exist, awake or asleep. |" in made
    assert "| `spec.idle.drainTimeout` | duration | `30s` | " in made
    assert "| `spec.idle.ports` | list of integer |  | " in made
    assert "| `spec.template`\\* |" in made
    assert "- `spec.idle.parkAfter`: needs suspendAfter" in made
