"""What may not come back in a new pod is refused before a file is written, or named by its cause; and rights in images
are what the processes had."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kybernate_agent.instance import Pod
from kybernate_agent.keepers import Keeper
from kybernate_agent.portable import ImageDiffersError, MountDiffersError, NotPortableError
from node_bed import PYTHON_IMAGE, NodeBed
from portable_bed import Bed, Client, first, manifest, portable_bed, workload

from kybernate.api import GpuWorkload, load
from kybernate.criu import PrivilegesExceedError
from kybernate.criu.privileges import held
from kybernate.errors import KybernateError
from kybernate.lab import python_image
from kybernate.store import Manifest

OTHER_IMAGE = "localhost/kybernate-test-other:1"


@pytest.fixture
async def bed(node_bed: NodeBed, tmp_path: Path) -> AsyncIterator[Bed]:
    async with portable_bed(node_bed, tmp_path) as made:
        yield made


async def parked(bed: Bed, app: GpuWorkload, *, whole: bool = True) -> tuple[Pod, Manifest]:
    """The pod is gone already."""
    old = await bed.start(app)
    client = await first(old)
    client.ask()
    client.close()
    made = await bed.park(old, whole=whole)
    await bed.pods.remove_pod(old)
    return old, made


async def refusal(bed: Bed, app: GpuWorkload, of: Manifest) -> KybernateError:
    with pytest.raises(KybernateError):
        await bed.start_restored(app, of)
    assert bed.refused is not None
    return bed.refused


def changed(old: str, new: str) -> GpuWorkload:
    text = manifest("keep")
    assert old in text
    return load(text.replace(old, new), "keep.yaml")[0]


async def test_another_image_mount_or_user_is_refused_and_the_same_comes_back(bed: Bed) -> None:
    bed.bed.load(python_image(OTHER_IMAGE, env={"OTHER": "1"}))
    _, of = await parked(bed, workload("keep"))
    assert isinstance(await refusal(bed, workload("keep", {"image": OTHER_IMAGE}), of), ImageDiffersError)
    error = await refusal(bed, workload("keep", mounts=[{"name": "more", "mountPath": "/more"}]), of)
    assert isinstance(error, MountDiffersError)
    assert "/more (emptyDir more) is mounted now only" in str(error)
    error = await refusal(bed, changed("mountPath: /data", "mountPath: /elsewhere"), of)
    assert "/data (emptyDir data) is mounted before only" in str(error)
    error = await refusal(bed, workload("keep", {"securityContext": {"runAsUser": 1000}}), of)
    assert isinstance(error, PrivilegesExceedError)
    assert "(python3) of the images runs as user 0" in str(error)
    new = await bed.start_restored(workload("keep"), of)
    assert await bed.wake(new, of) is None
    client = await first(new)
    assert client.ask()["count"] == 2
    client.close()


async def test_another_image_under_the_same_name_is_refused(bed: Bed) -> None:
    moving = "localhost/kybernate-test-moving:1"
    bed.bed.load(python_image(OTHER_IMAGE, env={"OTHER": "1"}))
    bed.bed.containerd.ctr("images", "tag", "--force", PYTHON_IMAGE, moving)
    _, of = await parked(bed, workload("keep", {"image": moving}))
    bed.bed.containerd.ctr("images", "tag", "--force", OTHER_IMAGE, moving)
    error = await refusal(bed, workload("keep", {"image": moving}), of)
    assert isinstance(error, ImageDiffersError)
    assert str(error).count(moving) == 2
    assert str(error).count("sha256:") == 2


async def test_what_was_parked_for_its_own_pod_alone_is_refused_in_another(bed: Bed) -> None:
    _, of = await parked(bed, workload("keep"), whole=False)
    assert isinstance(await refusal(bed, workload("keep"), of), NotPortableError)


def with_host_folder(folder: Path) -> GpuWorkload:
    """`folder` stands for a PVC: referenced, not copied."""
    extra = "f = open('/pvc/file', 'r+')"
    mounts = "volumeMounts:\n        - mountPath: /pvc\n          name: pvc"
    volumes = f"volumes:\n      - hostPath:\n          path: {folder}\n        name: pvc"
    text = manifest(
        "keep", {"env": [{"name": "EXTRA", "value": extra}, {"name": "ASK", "value": "(f.seek(0), f.read())[1]"}]}
    )
    text = text.replace("volumeMounts:", mounts)
    return load(text.replace("      volumes:", f"      {volumes}"), "keep.yaml")[0]


async def test_a_file_of_a_volume_that_has_changed_is_named_and_nothing_is_lost(bed: Bed, tmp_path: Path) -> None:
    volume = tmp_path / "pvc"
    volume.mkdir()
    (volume / "file").write_text("as it was")
    app = with_host_folder(volume)
    _, of = await parked(bed, app)
    new = await bed.start_restored(app, of)
    (volume / "file").write_text("as it was, and more")
    cause = await bed.wake(new, of)
    assert cause is not None
    assert (cause.code, "/pvc/file" in cause.message or "pvc/file" in cause.message) == ("file-changed", True)
    (volume / "file").unlink()
    cause = await bed.wake(new, of)
    assert cause is not None
    assert cause.code == "file-missing"
    (volume / "file").write_text("as it was")
    assert await bed.wake(new, of) is None
    client = await first(new)
    assert client.ask()["extra"] == "as it was"
    client.close()


DROPPED = """
import ctypes, threading
libc = ctypes.CDLL(None)
libc.prctl(24, 13, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_NET_RAW
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
os.setgroups([5, 6])
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


async def test_rights_in_images_are_what_the_threads_had(bed: Bed) -> None:
    old = await bed.start(workload("keep", {"env": [{"name": "EXTRA", "value": DROPPED}]}))
    client = await first(old)
    init = (await Keeper(bed.bed.run, old.container).state()).init_pid
    before = await asyncio.to_thread(rights_of, init)
    assert len(before) == 2, "two threads"
    of = await bed.park(old)
    client.close()
    threads = held(bed.store.images(of))
    found = [(it.users, it.groups, it.capabilities, it.no_new_privileges) for it in threads]
    assert sorted(found, key=str) == sorted((it[:4] for it in before), key=str)
    assert (frozenset({0, 5, 6}), True) in {(it.groups, it.no_new_privileges) for it in threads}
    assert [(it.seccomp, it.name) for it in threads if it.first] == [(2, "python3")]
    assert {it[4] for it in before} == {2}, "all threads have the filter, though the first one's alone is dumped"


def rights_of(pid: int) -> list[tuple[frozenset[int], frozenset[int], int, bool, int]]:
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        lines = Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines()
        says = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        capabilities = 0
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            capabilities |= int(says[name], 16)
        users = frozenset(map(int, says["Uid"].split()))
        groups = frozenset(map(int, [*says["Gid"].split(), *says["Groups"].split()]))
        found.append((users, groups, capabilities, says["NoNewPrivs"] == "1", int(says["Seccomp"])))
    return found


async def test_a_connection_of_the_old_pod_ends_and_a_new_one_is_taken(bed: Bed) -> None:
    old = await bed.start(workload("keep"))
    client = await first(old)
    assert client.ask()["peers"] == 1
    of = await bed.park(old)
    await bed.pods.remove_pod(old)
    new = await bed.start_restored(workload("keep"), of)
    assert await bed.wake(new, of) is None
    again = await asyncio.to_thread(Client, new)
    assert again.ask()["peers"] == 2
    again.close()
    client.close()
