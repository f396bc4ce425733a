"""emptyDirs of medium Memory: every park saves them, and a machine that started anew gets them back."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kybernate_agent import portable

from kybernate.criu import images
from kybernate.criu._pb import criu_images_pb2 as pb

UID = "0f0f-uid"


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Path]:
    """The folder of a pod with one emptyDir in memory and one on the disk, as the kubelet lays it out."""
    volumes = tmp_path / "pods" / UID / "volumes" / "kubernetes.io~empty-dir"
    for name in ("memory", "disk"):
        (volumes / name).mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", volumes / "memory"], check=True, timeout=30)
    yield volumes
    subprocess.run(["umount", volumes / "memory"], check=True, timeout=30)


def bundle(folder: Path, volumes: Path, sandbox: str) -> Path:
    options = ["rbind", "rw"]
    mounts = [
        {"destination": f"/{name}", "type": "bind", "source": str(volumes / name), "options": options}
        for name in ("memory", "disk")
    ]
    notes = {"io.kubernetes.cri.sandbox-uid": UID, "io.kubernetes.cri.sandbox-id": sandbox}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"annotations": notes, "mounts": mounts}))
    return folder


async def saved(folder: Path, of: Path) -> Path:
    folder.mkdir()
    await portable.save(folder, await portable.facts_of(of), whole=False)
    core = pb.Core(tc=pb.TaskCore(comm="app"), thread_core=pb.ThreadCore(creds=pb.Creds(uid=0))).SerializeToString()
    (folder / "core-1.img").write_bytes(images.CORE + struct.pack("<I", len(core)) + core)
    return folder


async def test_what_lay_in_memory_comes_back_after_a_restart_of_the_machine(
    pod: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pod / "memory" / "word").write_text("kept")
    (pod / "disk" / "word").write_text("on the disk")
    made = await saved(tmp_path / "images", bundle(tmp_path / "old", pod, "sandbox-1"))
    kept = portable.load(made)
    assert kept is not None
    assert (kept.in_memory, list(kept.archives)) == (("memory",), ["memory"])

    (pod / "memory" / "word").write_text("a helper container went on")
    new = await portable.facts_of(bundle(tmp_path / "new", pod, "sandbox-2"))
    assert not await portable.restore(made, new)
    assert (pod / "memory" / "word").read_text() == "a helper container went on", "the machine has not restarted"

    (pod / "memory" / "word").unlink()
    (pod / "memory" / "half").write_text("a try that was cut short")
    (pod / "disk" / "word").write_text("on the disk, still")
    monkeypatch.setattr(portable, "_boot", lambda: "another")
    assert not await portable.restore(made, new)
    assert {path.name: path.read_text() for path in (pod / "memory").iterdir()} == {"word": "kept"}
    assert (pod / "disk" / "word").read_text() == "on the disk, still"


async def test_the_same_sandbox_has_everything_still(pod: Path, tmp_path: Path) -> None:
    (pod / "memory" / "word").write_text("kept")
    made = await saved(tmp_path / "images", bundle(tmp_path / "old", pod, "sandbox-1"))
    (pod / "memory" / "word").write_text("later")
    assert not await portable.restore(made, await portable.facts_of(bundle(tmp_path / "new", pod, "sandbox-1")))
    assert (pod / "memory" / "word").read_text() == "later"
