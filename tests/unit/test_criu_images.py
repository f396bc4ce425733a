"""CRIU's image files: read what is known, keep what is not."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kybernate.criu import ImageFormatError, drop_empty_tmpfs, dump_stats, images
from kybernate.criu._pb import criu_images_pb2 as pb

# A mountpoints image with fields that are not in our .proto (3 root_dev, 5 flags, 10 shared_id, 99).
KEPT = bytes([3 << 3, 7, 5 << 3, 6, 10 << 3, 0]) + b"\x9a\x06\x03new"


def mount(path: str, key: str = "") -> bytes:
    entry = pb.Mount(fstype=pb.Mount.TMPFS, mnt_id=9, mountpoint=path, source="tmpfs", options="size=64k")
    if key:
        entry.ext_key = key
    return entry.SerializeToString() + KEPT


def written(path: Path, magic: bytes, *bodies: bytes) -> Path:
    path.write_bytes(magic + b"".join(struct.pack("<I", len(body)) + body for body in bodies))
    return path


def test_dumped_cookies_become_plain_tmpfs_and_all_else_is_kept(tmp_path: Path) -> None:
    bodies = [mount("/dev"), mount("/dev/shm", "kybernate-empty-tmpfs"), mount("/data", "/data")]
    path = written(tmp_path / "mountpoints-12.img", images.MOUNTPOINTS, *bodies)
    assert drop_empty_tmpfs(tmp_path) == ["/dev/shm"]
    dev, shm, data = images.load(path, images.MOUNTPOINTS, pb.Mount)
    assert dev.SerializeToString() == pb.Mount.FromString(bodies[0]).SerializeToString()
    assert data.ext_key == "/data"
    assert (shm.fstype, shm.fsname, shm.HasField("ext_key"), shm.options) == (16, "tmpfs", False, "size=64k")
    assert shm.SerializeToString().endswith(KEPT)
    assert drop_empty_tmpfs(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 9, 12, 20])
def test_a_cut_image_is_an_error_that_names_the_file(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "mountpoints-12.img", images.MOUNTPOINTS, mount("/dev/shm"))
    path.write_bytes(path.read_bytes()[:cut])
    if cut == 9:
        path.write_bytes(path.read_bytes()[:8] + b"\xff\xff")
    with pytest.raises(ImageFormatError, match="mountpoints-12"):
        drop_empty_tmpfs(tmp_path)


def test_another_kind_of_image_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "mountpoints-12.img", images.STATS, mount("/dev/shm"))
    with pytest.raises(ImageFormatError, match="begins with"):
        drop_empty_tmpfs(tmp_path)


def test_stats_come_in_seconds_and_bytes(tmp_path: Path) -> None:
    stats = pb.Stats(dump=pb.DumpStats(freezing_time=1500, frozen_time=250_000, memwrite_time=10, pages_written=3))
    written(tmp_path / "stats-dump", images.STATS, stats.SerializeToString())
    found = dump_stats(tmp_path)
    assert (found.freezing_seconds, found.frozen_seconds, found.pages_written_bytes) == (0.0015, 0.25, 12288)
