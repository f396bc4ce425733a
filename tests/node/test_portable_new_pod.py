"""A parked instance comes back in a new pod, with all its files; and what may not come back is refused."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from node_bed import NodeBed
from portable_bed import Bed, first, portable_bed, workload
from shim_bed import until


@pytest.fixture
async def bed(node_bed: NodeBed, tmp_path: Path) -> AsyncIterator[Bed]:
    async with portable_bed(node_bed, tmp_path) as made:
        yield made


async def test_a_server_counts_on_in_a_new_pod_with_all_its_files(bed: Bed) -> None:
    old = await bed.start(workload("keep"))
    client = await first(old)
    assert [client.ask()["count"] for _ in range(3)] == [1, 2, 3]
    before = client.ask()
    upper = await bed.upper(old)
    manifest = await bed.park(old)
    names = {file.name for file in manifest.files}
    assert {"layer.tar", "emptydir-data.tar", "shm.tar", "portable.json"} <= names
    await bed.pods.remove_pod(old)
    until(lambda: not upper.exists(), 60, "containerd has removed the old layer")

    new = await bed.start_restored(workload("keep"), manifest, "moved-0")
    assert (new.uid, new.sandbox, new.ip) != (old.uid, old.sandbox, old.ip)
    assert await bed.wake(new, manifest) is None
    client.close()
    client = await first(new)
    now = client.ask()
    assert now["count"] == 5
    for name in ("layer", "data", "shm"):
        assert now[name] == [*before[name], "5"], "the descriptors of before write to the files that are there now"
    assert now["page"] == 5, "shared memory is the file's"
    assert (now["link"], now["large"], now["removed"]) == ("not open", 1 << 20, True)
    assert now["host"] == "moved-0", "the new pod's name, not the dump's"
    assert stat.S_ISCHR((await bed.upper(new) / "etc/group").lstat().st_mode), "a whiteout"

    # And again, in place: everything is where it was.
    client.close()
    manifest = await bed.park(new, whole=False)
    assert "layer.tar" not in {file.name for file in manifest.files}
    assert await bed.wake(new, manifest) is None
    client = await first(new)
    assert client.ask()["count"] == 6
    client.close()
