"""Sockets bound to the pod's own address, in a pod whose address is another.

A listener on the pod's address, or a datagram socket that once chose it, cannot be bound again where nobody has that
address. So for a restore into another network the files image is written anew, with the new address in place of the
old. The images themselves stay as they were sealed: CRIU is shown a folder with links to them and the one changed file.
Connected TCP sockets are left alone, for they come back closed.

Source: CRIU images/sk-inet.proto; addresses are words of 32 bits as they lie in memory.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from kybernate.criu import images
from kybernate.criu._pb import criu_images_pb2 as pb

_FILES = "files.img"
_TCP, _LISTEN, _CLOSE = 6, 10, 7
_MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address in an IPv6 socket

Words = tuple[int, ...]


def replacements(old: Iterable[str], new: Iterable[str]) -> dict[Words, Words]:
    """What stands for what in images: the first address of each family for all old ones of it. Pure."""
    found: dict[Words, Words] = {}
    now = [ipaddress.ip_address(text) for text in new]
    for was in map(ipaddress.ip_address, old):
        instead = next((address for address in now if address.version == was.version), None)
        if instead is None or was in now:
            continue
        found[_words(was.packed)] = _words(instead.packed)
        if was.version == 4:
            found[_words(_MAPPED + was.packed)] = _words(_MAPPED + instead.packed)
    return found


def readdressed(folder: Path, view: Path, instead: Mapping[Words, Words]) -> Path:
    """The folder for CRIU to read: `folder` where no socket has an old address, else `view`, made anew beside it on
    the same disk.

    Raises ImageFormatError, OSError.
    """
    entries = images.load(folder / _FILES, images.FILES, pb.File)
    changed = [_changed(entry.isk, instead) for entry in entries if entry.HasField("isk")]
    if not any(changed):
        return folder
    view.mkdir(mode=0o700)
    for path in folder.iterdir():
        if path.name != _FILES:
            os.link(path, view / path.name)  # no symbolic ones: CRIU opens some when it has changed its root already
    images.save(view / _FILES, images.FILES, entries)
    return view


def _changed(sock: pb.InetSocket, instead: Mapping[Words, Words]) -> bool:
    if sock.proto == _TCP and sock.state not in (_LISTEN, _CLOSE):
        return False
    found = False
    for addresses in (sock.src_addr, sock.dst_addr):
        new = instead.get(tuple(addresses))
        if new is not None:
            addresses[:] = new
            found = True
    return found


def _words(packed: bytes) -> Words:
    return struct.unpack(f"={len(packed) // 4}I", packed)
