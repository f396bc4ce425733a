"""The image that is deployed, as it comes out of the archive."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kybernate.lab import images
from kybernate.lab.product_image import product_image


@pytest.fixture(scope="module")
def entries() -> Iterator[dict[str, tarfile.TarInfo]]:
    """The layer's entries by name."""
    with tarfile.open(product_image().archive) as archive:
        index = json.load(archive.extractfile("index.json"))  # type: ignore[arg-type]
        digest = index["manifests"][0]["digest"].removeprefix("sha256:")
        manifest = json.load(archive.extractfile(f"blobs/sha256/{digest}"))  # type: ignore[arg-type]
        layer = archive.extractfile("blobs/sha256/" + manifest["layers"][0]["digest"].removeprefix("sha256:"))
        with tarfile.open(fileobj=layer) as files:
            yield {entry.name: entry for entry in files}


def test_built_anew_elsewhere_it_has_the_same_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = product_image()
    (tmp_path / "kybernate").mkdir()
    (tmp_path / "kybernate/wheels").symlink_to(images.cache() / "wheels")  # they are fetched, the rest is made
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    second = product_image()
    assert second.archive != first.archive
    assert second.digest == first.digest


def test_it_holds_what_runs_and_not_what_builds(entries: dict[str, tarfile.TarInfo]) -> None:
    ours = {name.split("/")[3] for name in entries if name.startswith("usr/lib/kybernate/")}
    assert ours == {
        "kybernate", "kybernate_agent", "kybernate_controller", "kybernate_installer", "kybernate_shim",
    }  # fmt: skip
    wheels = {name.split("/")[2].split("-")[0] for name in entries if name.startswith("opt/wheels/")}
    assert {"aiohttp", "grpc", "msgspec"} <= wheels
    assert not {"pytest", "mypy", "ruff", "pip", "grpc_tools", "kubernetes"} & wheels
    assert not [name for name in entries if "/kybernate/lab/" in name]


def test_nobody_but_root_can_change_anything_in_it(entries: dict[str, tarfile.TarInfo]) -> None:
    open_to_all = [name for name, it in entries.items() if it.mode & 0o022 and not it.issym()]
    assert open_to_all == ["tmp", "var/tmp"] or open_to_all == ["tmp"]
    assert {(it.uid, it.gid) for it in entries.values()} == {(0, 0)}


def test_the_controller_can_read_its_code(entries: dict[str, tarfile.TarInfo]) -> None:
    """It is not root there."""
    closed = [name for name, it in entries.items() if name.startswith(("usr/", "opt/")) and not it.mode & 0o004]
    assert [name for name in closed if name.startswith(("usr/lib/kybernate", "usr/lib/python3", "opt/wheels"))] == []
