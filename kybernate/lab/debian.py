"""The installed Debian or Ubuntu packages of this machine as a source of files.

dpkg knows what is installed, what needs what, and which files belong to it. A package and all that it depends on is a
root file system that works, of exactly the versions that run here; nothing is downloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kybernate.errors import NotFoundError
from kybernate.lab.process import run

# Not needed by programs that run in a container, and large: configuration of packages, documentation, translations.
LEFT_OUT = frozenset({"debconf", "debconf-2.0", "perl-base", "cdebconf", "tzdata"})
_LEFT_OUT_FOLDERS = tuple(
    f"/usr/share/{name}/" for name in ("doc", "man", "locale", "info", "lintian", "bug", "doc-base", "applications")
)


class PackageMissingError(NotFoundError):
    """The Debian package {package} is not installed. `./dev` installs it, or: apt-get install {package}"""


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    provides: tuple[str, ...]
    depends: tuple[tuple[str, ...], ...]  # each a choice of which one is enough


def installed() -> dict[str, Package]:
    """Every installed package, by its name and by what it provides. A name of its own wins over a provided one."""
    fields = ("Package", "Version", "db:Status-Status", "Provides", "Pre-Depends", "Depends")
    text = run(["dpkg-query", "-W", "-f", "\t".join(f"${{{field}}}" for field in fields) + "\n"])
    found: dict[str, Package] = {}
    provided: dict[str, Package] = {}
    for line in text.splitlines():
        name, version, status, provides, before, depends = line.split("\t")
        if status == "installed":
            package = Package(name, version, _names(provides), _choices(before) + _choices(depends))
            found[name] = package
            provided.update(dict.fromkeys(package.provides, package))
    return {**provided, **found}


def closure(names: Iterable[str], packages: dict[str, Package], left_out: frozenset[str] = LEFT_OUT) -> list[Package]:
    """These packages and all that they depend on, by name. Raises PackageMissingError for one of `names`."""
    found: dict[str, Package] = {}
    todo = list(names)
    for name in todo:
        if name not in packages:
            raise PackageMissingError(package=name)
    while todo:
        package = packages[todo.pop()]
        if package.name in found or package.name in left_out:
            continue
        found[package.name] = package
        for choice in package.depends:
            first = next((name for name in choice if name in packages), None)
            if first and first not in left_out:
                todo.append(first)
    return [found[name] for name in sorted(found)]


def files(packages: Iterable[Package]) -> list[Path]:
    """The files, links and folders of these packages as they lie on this machine: folders that are links resolved."""
    names = [package.name for package in packages]
    listed = run(["dpkg", "-L", *names]).splitlines() if names else []
    found = set()
    for line in listed:
        if line.startswith("/") and line != "/." and not f"{line}/".startswith(_LEFT_OUT_FOLDERS):
            path = Path(os.path.realpath(os.path.dirname(line)), os.path.basename(line))
            if os.path.lexists(path):
                found.add(path)
    return sorted(found)


def merged_links() -> dict[str, str]:
    """The links at the root of a merged file system: /bin to usr/bin and so on, as they are here."""
    names = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
    return {name: os.readlink(name) for name in names if os.path.islink(name)}


def _names(field: str) -> tuple[str, ...]:
    return tuple(name for (name, *_) in _choices(field))


def _choices(field: str) -> tuple[tuple[str, ...], ...]:
    """`a (>= 1) | b:any, c` as (("a", "b"), ("c",))."""
    clauses = (clause.split("|") for clause in field.split(",") if clause.strip())
    return tuple(tuple(re.split(r"[\s(:]", name.strip(), maxsplit=1)[0] for name in clause) for clause in clauses)
