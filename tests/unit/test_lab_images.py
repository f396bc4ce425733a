"""Images from what is installed."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from kybernate.lab import images
from kybernate.lab.images import Contents, build


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def contents(text: bytes = b"#!/bin/sh\n") -> Contents:
    return Contents(["busybox-static"], {"run.sh": text}, {"usr/bin/sh": "busybox"})


def test_the_same_contents_give_the_same_digest() -> None:
    first = build("localhost/x:1", contents(), {"Cmd": ["/run.sh"]})
    first.archive.unlink()
    assert build("localhost/x:1", contents(), {"Cmd": ["/run.sh"]}) == first


def test_changed_contents_give_another_digest() -> None:
    assert build("localhost/x:1", contents(), {}).digest != build("localhost/x:1", contents(b"other"), {}).digest


def test_a_built_image_is_taken_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    first = build("localhost/x:1", contents(), {})
    monkeypatch.delattr(images, "_stage")
    assert build("localhost/x:1", contents(), {}) == first


def test_the_layer_holds_files_links_and_folders(tmp_path: Path) -> None:
    image = build("localhost/x:1", contents(), {"Cmd": ["/run.sh"]})
    with tarfile.open(image.archive) as archive:
        manifest = json.load(archive.extractfile(f"blobs/sha256/{image.digest.removeprefix('sha256:')}"))  # type: ignore[arg-type]
        layer = archive.extractfile("blobs/sha256/" + manifest["layers"][0]["digest"].removeprefix("sha256:"))
        with tarfile.open(fileobj=layer) as files:
            entries = {it.name: it for it in files}
    assert entries["run.sh"].mode == 0o755
    assert entries["usr/bin/sh"].linkname == "busybox"
    assert entries["tmp"].mode & 0o1777 == 0o1777
    assert entries["proc"].isdir()
    assert {it.mtime for it in entries.values()} == {0}
    assert not any("/doc/" in name for name in entries)


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_an_image_does_not_depend_on_the_users_umask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, umask: int
) -> None:
    source = tmp_path / "app.py"
    source.write_text("pass\n")
    digests = []
    before = os.umask(0o022)
    try:
        for mask in (0o022, umask):
            os.umask(mask)
            source.chmod(0o666 & ~mask)
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"{mask:o}"))
            whole = Contents(
                ["busybox-static"], {"app.py": source, "deep/er": b"#!/bin/sh\n"}, {"usr/bin/sh": "busybox"}
            )
            digests.append(build("localhost/x:1", whole, {}).digest)
    finally:
        os.umask(before)
    assert digests[0] == digests[1]
