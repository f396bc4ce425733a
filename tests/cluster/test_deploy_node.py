"""The installer on a real node: killed at any moment, called again, and taking everything away.

It runs on the node itself, as its second half always does; the node's containerd is started again by the node.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_bed import CLASS, ClusterBed, open_cluster, pod
from deploy_bed import CONFIG, PREFIX, starts

from kybernate.lab.process import ProgramError

INSTALL = [sys.executable, "-m", "kybernate_installer", "install"]
INSTALLER = f"{PREFIX}/bin/kybernate-installer"
RUN = "/run/kybernate"


@pytest.fixture(scope="module")
def bed() -> Iterator[ClusterBed]:
    with open_cluster() as made:
        made.runtime_class()
        yield made


def config(bed: ClusterBed) -> bytes:
    return bed.node.machine.path(CONFIG).read_bytes()


def exists(bed: ClusterBed, path: str) -> bool:
    return bed.node.machine.path(path).is_symlink() or bed.node.machine.path(path).exists()


@pytest.fixture
def original(bed: ClusterBed) -> Iterator[bytes]:
    """containerd's file without us; at the end nothing of us is left."""
    before = config(bed)
    assert b">>> kybernate" not in before
    yield before
    if exists(bed, INSTALLER):
        bed.node.run([INSTALLER, "uninstall"], deadline_seconds=120)
    assert config(bed) == before
    assert [path for path in (PREFIX, f"{RUN}/keepers", f"{CONFIG}.before-kybernate") if exists(bed, path)] == []
    assert bed.node.run(["ls", "-A", str(Path(CONFIG).parent)]) == "config.toml\n"


def dumped(bed: ClusterBed) -> set[str]:
    """The runtimes that containerd reads out of its file as it is now; it has to be able to."""
    found = tomllib.loads(bed.node.run(["containerd", "--config", CONFIG, "config", "dump"]))
    return set(found["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"])


@pytest.mark.parametrize("seconds", [0.2, 0.5, 0.9, 1.4, 2.0])
def test_killed_at_any_moment_it_is_finished_by_the_next(bed: ClusterBed, original: bytes, seconds: float) -> None:
    with pytest.raises(ProgramError):
        bed.node.run(
            [
                "timeout",
                "--signal=KILL",
                str(seconds),
                "sh",
                "-c",
                'until "$@"; do :; done; exec sleep 60',
                "sh",
                *INSTALL,
            ]
        )
    assert config(bed).startswith(original)
    assert dumped(bed) in ({"runc"}, {"runc", CLASS})
    bed.node.run(INSTALL, deadline_seconds=120)
    assert dumped(bed) == {"runc", CLASS}
    before = starts(bed)
    bed.node.run(INSTALL, deadline_seconds=120)
    assert starts(bed) == before
    versions = bed.node.run(["ls", "-A", f"{PREFIX}/versions"]).split()
    assert len(versions) == 1
    assert bed.node.run(["readlink", f"{PREFIX}/current"]).strip() == f"versions/{versions[0]}"


def test_containerd_knows_the_handler_at_once_and_its_containers_run_on(bed: ClusterBed, original: bytes) -> None:
    bed.apply(pod("bystander"))
    bed.wait("pod/bystander")
    container = bed.get("pod", "bystander")["status"]["containerStatuses"][0]["containerID"]
    bed.node.run(INSTALL, deadline_seconds=120)
    bed.apply(pod("ours", runtimeClassName=CLASS))
    bed.wait("pod/ours")
    assert bed.get("pod", "bystander")["status"]["containerStatuses"][0]["containerID"] == container
    bed.delete("pod/ours", "pod/bystander")


def test_uninstalling_is_refused_while_a_pod_of_the_class_exists(bed: ClusterBed, original: bytes) -> None:
    bed.node.run(INSTALL, deadline_seconds=120)
    bed.apply(pod("ours", runtimeClassName=CLASS))
    bed.wait("pod/ours")
    before = starts(bed)
    with pytest.raises(ProgramError, match="Delete their pods first"):
        bed.node.run([INSTALLER, "uninstall"])
    assert dumped(bed) == {"runc", CLASS}
    assert starts(bed) == before
    bed.delete("pod/ours")


REFUSES = f"""#!/bin/sh
grep -q '>>> kybernate' {CONFIG} && exit 1
exec {shutil.which("containerd")} "$@"
"""


@pytest.fixture
def picky(bed: ClusterBed) -> Iterator[str]:
    """A containerd in front that reads our block in its file, and does not start with it."""
    path = "/usr/local/bin/containerd"
    bed.node.run(["sh", "-c", f"cat > {path} && chmod 755 {path}"], stdin=REFUSES.encode())
    yield path
    bed.node.run(["rm", "-f", path])


def test_a_containerd_that_does_not_come_back_gets_its_old_file(bed: ClusterBed, original: bytes, picky: str) -> None:
    hurried = [*INSTALL, "--patience", "10"]
    with pytest.raises(ProgramError):
        bed.node.run(hurried, deadline_seconds=120)
    assert config(bed) == original
    assert bed.node.run(["ctr", "version"])
    before = starts(bed)
    with pytest.raises(ProgramError):
        bed.node.run(hurried, deadline_seconds=120)
    assert starts(bed) == before  # it is not tried again and again
    assert config(bed) == original
    bed.node.run(["rm", picky, f"{PREFIX}/refused-handler"])
    bed.node.run(hurried, deadline_seconds=120)
    assert dumped(bed) == {"runc", CLASS}
