"""What a store holds.

A *checkpoint* is the set of CRIU's image files of one instance at one *epoch* (a number that grows with each dump of
the instance). It exists if and only if its *manifest* does: the list of the files with their lengths and hashes, and
how they were made. Before that it is a *staging*: a folder that somebody writes to and that the next sweep may take
away.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from kybernate.store.errors import InstanceNameError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LONGEST_NAME = 230  # with "-<epoch>" and a suffix still one file name


class ImageFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a checkpoint. Hashes are hexadecimal; `kybernate.store.hashing` says of what."""

    name: str
    size: int
    xxh3: str
    blake3: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What makes a checkpoint exist. `made` says how: versions of criu, runc, kernel; container, mounts, time."""

    instance: str
    epoch: int
    files: tuple[ImageFile, ...]
    made: dict[str, Any]
    mac: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


class Staging(msgspec.Struct, frozen=True):
    """A place for a dump to write to. `images` is an empty folder, mode 0700."""

    instance: str
    epoch: int
    images: Path


def validate_name(instance: str, epoch: int) -> None:
    """Raises InstanceNameError for whatever is no DNS-1123 subdomain (hence is no path, no link, no hidden file)."""
    named = len(instance) <= _LONGEST_NAME and _NAME.fullmatch(instance)
    if not named or isinstance(epoch, bool) or not 0 <= epoch < 1 << 63:
        raise InstanceNameError(instance=instance, epoch=epoch)
