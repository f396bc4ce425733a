"""Sockets of the former pod's address get the new one's; connected TCP sockets and all else stay."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

import pytest

from kybernate.criu import images
from kybernate.criu._pb import criu_images_pb2 as pb
from kybernate.criu.addresses import readdressed, replacements

OLD4, NEW4, OLD6, NEW6 = "10.1.0.7", "10.2.0.9", "fd00::7", "fd00::9"
TCP, UDP, ESTABLISHED, LISTEN, CLOSE = 6, 17, 1, 10, 7
UNKNOWN = b"\x9a\x06\x03new"  # a field that our .proto lacks


def words(text: str) -> list[int]:
    packed = ipaddress.ip_address(text).packed
    return list(struct.unpack(f"={len(packed) // 4}I", packed))


def sock(source: str, proto: int = TCP, state: int = LISTEN, peer: str = "0.0.0.0") -> bytes:
    isk = pb.InetSocket(proto=proto, state=state, src_port=80, src_addr=words(source), dst_addr=words(peer))
    return pb.File(isk=isk).SerializeToString() + UNKNOWN


def folder(path: Path, *bodies: bytes) -> Path:
    path.mkdir()
    (path / "files.img").write_bytes(images.FILES + b"".join(struct.pack("<I", len(body)) + body for body in bodies))
    (path / "pages-1.img").write_bytes(b"pages")
    return path


def test_one_address_of_each_family_stands_for_the_old_ones() -> None:
    found = replacements([OLD4, OLD6], [NEW6, NEW4])
    assert found[tuple(words(OLD4))] == tuple(words(NEW4))
    assert found[tuple(words(OLD6))] == tuple(words(NEW6))
    assert found[tuple(words(f"::ffff:{OLD4}"))] == tuple(words(f"::ffff:{NEW4}"))
    assert len(found) == 3
    assert replacements([OLD4], [OLD4]) == replacements([OLD6], [NEW4]) == replacements([], [NEW4]) == {}


@pytest.mark.parametrize(
    ("body", "source", "peer"),
    [
        (sock(OLD4), NEW4, "0.0.0.0"),
        (sock(OLD6, peer="::"), NEW6, "::"),
        (sock(f"::ffff:{OLD4}", peer="::"), f"::ffff:{NEW4}", "::"),
        (sock(OLD4, UDP, ESTABLISHED, "8.8.8.8"), NEW4, "8.8.8.8"),
        (sock(OLD4, UDP, ESTABLISHED, OLD4), NEW4, NEW4),
        (sock(OLD4, TCP, CLOSE), NEW4, "0.0.0.0"),
    ],
)
def test_what_is_bound_to_the_old_address_is_bound_to_the_new(
    tmp_path: Path, body: bytes, source: str, peer: str
) -> None:
    sealed = folder(tmp_path / "images", sock("0.0.0.0"), body)
    before = (sealed / "files.img").read_bytes()
    view = readdressed(sealed, tmp_path / "view", replacements([OLD4, OLD6], [NEW4, NEW6]))
    assert view == tmp_path / "view"
    first, second = images.load(view / "files.img", images.FILES, pb.File)
    assert list(first.isk.src_addr) == words("0.0.0.0")
    assert (list(second.isk.src_addr), list(second.isk.dst_addr)) == (words(source), words(peer))
    assert second.SerializeToString().endswith(UNKNOWN)
    assert (view / "pages-1.img").samefile(sealed / "pages-1.img")
    assert not (view / "pages-1.img").is_symlink()
    assert (sealed / "files.img").read_bytes() == before, "what is sealed stays as it is"


@pytest.mark.parametrize("body", [sock("0.0.0.0"), sock(OLD4, TCP, ESTABLISHED), sock("127.0.0.1", UDP)])
def test_where_nothing_is_bound_to_it_the_images_are_used_as_they_are(tmp_path: Path, body: bytes) -> None:
    sealed = folder(tmp_path / "images", body)
    assert readdressed(sealed, tmp_path / "view", replacements([OLD4], [NEW4])) == sealed
    assert not (tmp_path / "view").exists()
