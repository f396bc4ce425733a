"""Packages of the machine as a source of files."""

from __future__ import annotations

import os

import pytest

from kybernate.lab import debian
from kybernate.lab.debian import Package, PackageMissingError, closure


def package(name: str, *depends: tuple[str, ...]) -> Package:
    return Package(name, "1", (), depends)


def names(*wanted: str, packages: list[Package]) -> list[str]:
    return [it.name for it in closure(wanted, {it.name: it for it in packages})]


def test_closure_follows_dependencies_once_and_in_order() -> None:
    everything = [package("b", ("c",), ("a",)), package("a", ("c",)), package("c", ("a",)), package("other")]
    assert names("b", packages=everything) == ["a", "b", "c"]


def test_closure_takes_the_first_alternative_that_is_installed() -> None:
    assert names("a", packages=[package("a", ("missing", "second", "third")), package("second"), package("third")]) == [
        "a",
        "second",
    ]


def test_closure_leaves_out_what_a_container_does_not_need() -> None:
    assert names("a", packages=[package("a", ("debconf",)), package("debconf", ("perl-base",))]) == ["a"]


def test_a_missing_package_is_named_with_its_remedy() -> None:
    with pytest.raises(PackageMissingError, match="apt-get install busybox-static"):
        names("busybox-static", packages=[])


def test_files_of_an_installed_package_lie_where_they_are_listed() -> None:
    known = debian.installed()
    found = debian.files(closure(["busybox-static"], known))
    assert any(path.name == "busybox" for path in found)
    assert all(os.path.lexists(path) for path in found)
    assert not any(str(path).startswith("/usr/share/doc/") for path in found)
