"""Every exit status that an error can end with is documented."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator

import kybernate_agent

import kybernate
from kybernate.cli.exit_codes import MEANINGS
from kybernate.errors import KybernateError


def leaves(kind: type[KybernateError] = KybernateError) -> Iterator[type[KybernateError]]:
    yield kind
    for sub in kind.__subclasses__():
        yield from leaves(sub)


def test_every_errors_exit_status_has_a_meaning() -> None:
    for package in (kybernate, kybernate_agent):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    # Those that stand in a module: the client makes more, of the names that come over the wire.
    ours = [kind for kind in leaves() if getattr(sys.modules[kind.__module__], kind.__name__, None) is kind]
    named = {kind.__name__: kind.exit_code for kind in ours if kind.__module__.startswith("kybernate")}
    assert len(named) > 10
    assert {name: code for name, code in named.items() if code not in MEANINGS} == {}
