"""What may not come back: another image, processor, mount, more rights. And portable.json itself."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kybernate_agent import portable
from kybernate_agent.portable import (
    Facts,
    ImageDiffersError,
    MountDiffersError,
    NotPortableError,
    ProcessorDiffersError,
    Saved,
    refuse_other,
)
from kybernate_agent.volumes import Mount

from kybernate.criu import images
from kybernate.criu._pb import criu_images_pb2 as pb
from kybernate.criu.privileges import Allowed
from kybernate.errors import KybernateError, StateLostError

ALLOWED = Allowed(0, frozenset({0}), 0, False, "", "", "")
MOUNTS = (Mount("/data", "emptyDir", "data", False),)
SAVED = Saved(
    whole=True,
    container="old",
    pod_uid="uid-1",
    sandbox="s-1",
    image="registry/app:1",
    digest="",
    mounts=MOUNTS,
    allowed=ALLOWED,
    architecture="x86_64",
    instructions=("avx2", "sse2"),
    archives={},
    in_memory=(),
    boot="b",
    shm=False,
    addresses=(),
)
NEW = Facts("new", "uid-2", "s-2", "registry/app:1", "", "/upper", MOUNTS, ALLOWED)


def saved(**changes: Any) -> Saved:
    return msgspec.structs.replace(SAVED, **changes)


def new(**changes: Any) -> Facts:
    return dataclasses.replace(NEW, **changes)


def refused(
    old: Saved, now: Facts, found: tuple[str, ...] = ("avx2", "avx512f", "sse2"), machine: str = "x86_64"
) -> str:
    try:
        refuse_other(old, now, found, machine)
    except KybernateError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("old", "now"),
    [
        (SAVED, NEW),
        (saved(digest="sha256:a"), new(digest="sha256:a", image="another-name/app:1")),
        (saved(digest="sha256:a"), NEW),
        (saved(digest="here/app@sha256:a"), new(digest="there/app@sha256:a", image="there/app:1")),
        (saved(digest="registry/app@sha256:a"), new(digest="sha256:c")),
        (saved(whole=False), new(pod_uid="uid-1")),
    ],
    ids=[
        "the same",
        "the same digest under another name",
        "one digest is unknown",
        "a mirror's",
        "of two kinds",
        "the same pod, not whole",
    ],
)
def test_the_same_is_let_pass(old: Saved, now: Facts) -> None:
    assert refused(old, now) == ""


@pytest.mark.parametrize(
    ("old", "now", "kind", "said"),
    [
        (SAVED, new(image="registry/app:2"), ImageDiffersError, "registry/app:2"),
        (saved(digest="sha256:a"), new(digest="sha256:b"), ImageDiffersError, "(sha256:b)"),
        (saved(digest="r/app@sha256:a"), new(digest="r/app@sha256:b"), ImageDiffersError, "(r/app@sha256:b)"),
        (SAVED, new(mounts=()), MountDiffersError, "/data (emptyDir data) is mounted before only"),
        (saved(whole=False), NEW, NotPortableError, "uid-1 alone"),
    ],
)
def test_another_is_refused_and_named(old: Saved, now: Facts, kind: type[KybernateError], said: str) -> None:
    answer = refused(old, now)
    assert answer.startswith(kind.__name__)
    assert said in answer


def test_a_processor_that_lacks_instructions_is_refused() -> None:
    assert "lacks avx2" in refused(SAVED, NEW, ("sse2",))
    assert refused(SAVED, NEW, ("sse2",)).startswith(ProcessorDiffersError.__name__)
    assert "lacks x86_64" in refused(SAVED, NEW, machine="aarch64")


def test_this_machines_instructions_are_found() -> None:
    assert portable.instructions() == tuple(sorted({*portable.instructions()}))
    assert portable.instructions()


def test_images_without_the_file_are_of_an_older_agent(tmp_path: Path) -> None:
    assert portable.load(tmp_path) is None
    assert not portable.has_moved(tmp_path, "s-1")


@pytest.mark.parametrize("text", ["{", '{"version": 1}', json.dumps({**msgspec.to_builtins(SAVED), "version": 2})])
def test_a_file_that_is_not_understood_is_lost_state_and_not_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / portable.FILE).write_text(text)
    with pytest.raises(StateLostError, match=portable.FILE):
        portable.load(tmp_path)


def bundle(folder: Path, **mounts: Path) -> Path:
    """As containerd writes it, without a root file system."""
    listed = [
        {"destination": f"/{name}", "type": "bind", "source": str(source), "options": ["rbind"]}
        for name, source in mounts.items()
    ]
    notes = {
        "io.kubernetes.cri.sandbox-uid": "uid-1",
        "io.kubernetes.cri.sandbox-id": "s-1",
        "io.kubernetes.cri.image-name": "registry/app:1",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"annotations": notes, "mounts": listed}))
    return folder


async def test_a_park_in_place_saves_what_lies_in_memory_only(tmp_path: Path) -> None:
    in_memory = Path("/dev/shm", f"kybtest-{os.getpid()}")
    disk = tmp_path / "pods" / "uid-1" / "volumes" / "disk"
    disk.mkdir(parents=True)
    facts = await portable.facts_of(bundle(tmp_path / "b", disk=disk))
    assert (facts.image, facts.pod_uid, facts.sandbox) == ("registry/app:1", "uid-1", "s-1")
    in_memory.mkdir()
    try:
        (in_memory / "word").write_text("kept")
        (tmp_path / "images").mkdir()
        await portable.save(tmp_path / "images", dataclasses.replace(facts, shm=str(in_memory)), whole=False)
    finally:
        (in_memory / "word").unlink()
        in_memory.rmdir()
    assert sorted(os.listdir(tmp_path / "images")) == ["portable.json", "shm.tar"]
    kept = portable.load(tmp_path / "images")
    assert kept is not None
    assert (kept.whole, kept.shm, kept.archives, kept.sandbox) == (False, True, {}, "s-1")
    assert portable.has_moved(tmp_path / "images", "s-2")
    assert not portable.has_moved(tmp_path / "images", "s-1")


async def test_whole_needs_an_overlay(tmp_path: Path) -> None:
    facts = await portable.facts_of(bundle(tmp_path / "b"))
    with pytest.raises(NotPortableError, match="no overlay"):
        await portable.save(tmp_path, facts, whole=True)


async def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(portable.BundleError, match=r"config\.json"):
        await portable.facts_of(tmp_path)


async def test_a_container_on_the_nodes_own_network_does_not_move(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b")
    (tmp_path / "images").mkdir()
    await portable.save(tmp_path / "images", await portable.facts_of(made), whole=False)
    core = pb.Core(tc=pb.TaskCore(comm="app"), thread_core=pb.ThreadCore(creds=pb.Creds(uid=0))).SerializeToString()
    (tmp_path / "images" / "core-1.img").write_bytes(images.CORE + struct.pack("<I", len(core)) + core)
    config = json.loads((made / "config.json").read_text())
    config["annotations"]["io.kubernetes.cri.sandbox-id"] = "s-2"
    config["linux"] = {"namespaces": [{"type": "uts", "path": "/proc/self/ns/uts"}]}
    (made / "config.json").write_text(json.dumps(config))
    facts = await portable.facts_of(made)
    assert facts.on_host == "uts"
    with pytest.raises(NotPortableError, match="shares the node's uts"):
        await portable.restore(tmp_path / "images", facts)
    assert not await portable.restore(tmp_path / "images", dataclasses.replace(facts, on_host=""))


async def test_what_a_tenant_mounts_as_host_name_is_not_read(tmp_path: Path) -> None:
    """A FIFO there would hold the one who reads it for good."""
    place = tmp_path / "pods" / "uid-2" / "volumes" / "kubernetes.io~empty-dir" / "own" / "name"
    place.parent.mkdir(parents=True)
    os.mkfifo(place)
    notes = {"io.kubernetes.cri.sandbox-uid": "uid-2", "io.kubernetes.cri.sandbox-id": "s-2"}
    mount = {"destination": "/etc/hostname", "type": "bind", "source": str(place), "options": ["rbind"]}
    (tmp_path / "config.json").write_text(json.dumps({"annotations": notes, "mounts": [mount]}))
    asking = asyncio.create_task(portable.name_host(os.getpid(), tmp_path))
    try:
        done, _ = await asyncio.wait({asking}, timeout=10)
        assert done
        await asking
    finally:
        os.close(os.open(place, os.O_RDWR))  # lets a reader go
