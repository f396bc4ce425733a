"""CRIU's image files: 8 bytes of magic, then messages, each after its length (u32, little endian).

Only what is needed is understood (`criu_images.proto`); the rest is carried over byte by byte.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from kybernate.criu._pb import criu_images_pb2 as pb
from kybernate.criu.errors import ImageFormatError

_IMAGE, _SERVICE = 0x54564319, 0x55105940  # what all images, and all of CRIU's notes to itself, begin with
MOUNTPOINTS = struct.pack("<II", _IMAGE, 0x55563928)
FILES = struct.pack("<II", _IMAGE, 0x56303138)
CORE = struct.pack("<II", _IMAGE, 0x55053847)
STATS = struct.pack("<II", _SERVICE, 0x57093306)
_MOST_BYTES = 64 << 20
_PAGE_BYTES = 4096

Entry = TypeVar("Entry", bound=Message)


@dataclass(frozen=True)
class DumpStats:
    """What CRIU says about a dump. Times in seconds; `frozen_seconds` includes writing the memory."""

    freezing_seconds: float
    frozen_seconds: float
    memory_write_seconds: float
    pages_written_bytes: int


@dataclass(frozen=True)
class RestoreStats:
    forking_seconds: float
    restore_seconds: float
    pages_restored_bytes: int


def load(path: Path, magic: bytes, kind: type[Entry]) -> list[Entry]:
    """All messages of an image file. Raises ImageFormatError, OSError."""
    content = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b""
    if content[:8] != magic:
        raise ImageFormatError(
            path=str(path), problem=f"begins with {content[:8].hex() or 'nothing'}, expected {magic.hex()}"
        )
    entries, at = [], 8
    while at < len(content):
        if at + 4 > len(content):
            raise ImageFormatError(path=str(path), problem="ends within a length")
        (size,) = struct.unpack_from("<I", content, at)
        at += 4
        if at + size > len(content):
            raise ImageFormatError(path=str(path), problem=f"ends within a message of {size} bytes")
        entry = kind()
        try:
            entry.ParseFromString(content[at : at + size])
        except DecodeError as error:
            raise ImageFormatError(path=str(path), problem=f"holds no {kind.DESCRIPTOR.name}: {error}") from error
        entries.append(entry)
        at += size
    return entries


def save(path: Path, magic: bytes, entries: list[Entry]) -> None:
    """Replace the file in one step (its mode stays 0600); the store's commit brings it to the disk."""
    bodies = [entry.SerializePartialToString() for entry in entries]
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(magic + b"".join(struct.pack("<I", len(body)) + body for body in bodies))
    fresh.replace(path)


def dump_stats(folder: Path) -> DumpStats:
    """From `stats-dump`, which CRIU writes into its work folder after post-dump. Raises ImageFormatError, OSError."""
    dump = _stats(folder / "stats-dump").dump
    return DumpStats(
        freezing_seconds=dump.freezing_time / 1e6,
        frozen_seconds=dump.frozen_time / 1e6,
        memory_write_seconds=dump.memwrite_time / 1e6,
        pages_written_bytes=dump.pages_written * _PAGE_BYTES,
    )


def restore_stats(folder: Path) -> RestoreStats:
    """From `stats-restore` in CRIU's work folder. Raises ImageFormatError, OSError."""
    restore = _stats(folder / "stats-restore").restore
    return RestoreStats(
        forking_seconds=restore.forking_time / 1e6,
        restore_seconds=restore.restore_time / 1e6,
        pages_restored_bytes=restore.pages_restored * _PAGE_BYTES,
    )


def _stats(path: Path) -> pb.Stats:
    entries = load(path, STATS, pb.Stats)
    if len(entries) != 1:
        raise ImageFormatError(path=str(path), problem=f"holds {len(entries)} messages, expected 1")
    return entries[0]
