"""The manifest as a file: `{"mac": ..., "version": 1, "manifest": {...}}`, one line.

The seal (MAC) is BLAKE3 keyed with the node's key over the very bytes of the value of `manifest`, as they stand in the
file. Nothing is interpreted before the seal is found true; then names are checked against the place the file was found
in, so that a true manifest in a wrong place is refused as well.
"""

from __future__ import annotations

import hmac
from typing import Any

import blake3
import msgspec

from kybernate.store.errors import ManifestDamagedError
from kybernate.store.types import ImageFile, Manifest

VERSION = 1
MANIFEST = "manifest.json"


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instance: str
    epoch: int
    files: tuple[ImageFile, ...]
    made: dict[str, Any]


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mac: str
    version: int
    manifest: msgspec.Raw


def seal(
    instance: str, epoch: int, files: tuple[ImageFile, ...], made: dict[str, Any], key: bytes
) -> tuple[Manifest, bytes]:
    """-> the manifest and the bytes of its file."""
    content = msgspec.json.encode(_Content(instance, epoch, files, made))
    mac = _mac(content, key)
    text = msgspec.json.encode(_Sealed(mac, VERSION, msgspec.Raw(content))) + b"\n"
    return Manifest(instance, epoch, files, made, mac), text


def unseal(text: bytes, path: str, instance: str, epoch: int, key: bytes) -> Manifest:
    """Raises ManifestDamagedError with `path` and the cause."""
    try:
        sealed = msgspec.json.decode(text, type=_Sealed)
    except msgspec.MsgspecError as error:
        raise ManifestDamagedError(path=path, problem=f"not readable as a manifest: {error}") from error
    if sealed.version != VERSION:
        raise ManifestDamagedError(path=path, problem=f"version {sealed.version} of the format, known is {VERSION}")
    if not hmac.compare_digest(sealed.mac.encode(), _mac(bytes(sealed.manifest), key).encode()):
        raise ManifestDamagedError(path=path, problem="its seal (MAC) is wrong: changed, or made with another key")
    try:
        content = msgspec.json.decode(sealed.manifest, type=_Content)
    except msgspec.MsgspecError as error:
        raise ManifestDamagedError(path=path, problem=f"sealed, but not understood: {error}") from error
    if (content.instance, content.epoch) != (instance, epoch):
        problem = f"is the manifest of {content.instance}, epoch {content.epoch}, and does not belong here"
        raise ManifestDamagedError(path=path, problem=problem)
    return Manifest(content.instance, content.epoch, content.files, content.made, sealed.mac)


def _mac(content: bytes, key: bytes) -> str:
    return blake3.blake3(b"kybernate manifest 1\0" + content, key=key).hexdigest()
