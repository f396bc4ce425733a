"""The options, the images and the causes against a real container: runc and CRIU, dumped and restored."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import criu_troubles
import pytest
from criu_container import PYTHON, SERVER, Container, container, run

from kybernate.criu import (
    OverlayInBindError,
    drop_empty_tmpfs,
    dump_conf,
    dump_stats,
    empty_tmpfs,
    explain,
    refuse_unsuitable,
    restore_conf,
    restore_stats,
    still_empty,
)
from kybernate.criu.mounts import mounts
from kybernate.store import FolderStore


def dumped(made: Container, images: Path, conf: str) -> None:
    done = made.dump(images, conf)
    assert done.returncode == 0, (done.stderr, explain(made.work / "dump.log", done.stderr))
    assert made.status == "gone"


def restored(made: Container, images: Path) -> None:
    done = made.restore(images, restore_conf())
    assert done.returncode == 0, (done.stderr, explain(made.work / "restore.log", done.stderr))
    assert made.status == "running"


def test_state_lock_deleted_file_and_connection_survive(tmp_path: Path) -> None:
    with container(tmp_path) as made, made.client() as client:
        assert client.ask() == "1 still here"
        for answer in ("2 still here", "3 still here"):
            images = tmp_path / answer[0]
            dumped(made, images, dump_conf())
            assert dump_stats(made.work).pages_written_bytes > 1 << 20
            restored(made, images)
            assert restore_stats(made.work).pages_restored_bytes > 1 << 20
            assert client.ask() == answer
        locked = "import fcntl; fcntl.flock(open('/var/tmp/lock', 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        taken = run("runc", "exec", made.id, PYTHON, "-c", locked, check=False)
        assert "BlockingIOError" in taken.stderr


def test_a_link_remap_and_a_named_semaphore_survive(tmp_path: Path) -> None:
    extra = """
import ctypes, os
f = open('/dev/shm/a', 'w+'); f.write('x'); f.flush(); os.link('/dev/shm/a', '/dev/shm/b'); os.unlink('/dev/shm/a')
assert ctypes.CDLL(None).sem_open(b'/sem', os.O_CREAT, 0o600, 1)
"""
    with container(tmp_path, env={"EXTRA": extra}) as made, made.client() as client:
        assert "/dev/shm" not in empty_tmpfs(made.pid)
        dumped(made, tmp_path / "1", dump_conf(empty_tmpfs=empty_tmpfs(made.pid)))
        drop_empty_tmpfs(tmp_path / "1")
        restored(made, tmp_path / "1")
        assert client.ask() == "1 still here"
        assert made.inside("import os; print(sorted(os.listdir('/dev/shm')))") == "['b', 'sem.sem']"


LOOK = """
    import os
    for path in ("/dev/shm", "/run", "/proc/acpi", "/sys/firmware"):
        stat, room = os.stat(path), os.statvfs(path)
        print(path, oct(stat.st_mode), stat.st_uid, room.f_blocks * room.f_frsize, room.f_flag, os.listdir(path))
"""


def test_empty_tmpfs_mounts_come_back_empty_with_size_mode_and_flags(tmp_path: Path) -> None:
    with container(tmp_path) as made, made.client() as client:
        before = made.inside(LOOK)
        for n in range(3):
            images = tmp_path / str(n)
            empty = empty_tmpfs(made.pid)
            assert {"/dev/shm", "/run", "/proc/acpi", "/sys/firmware"} <= set(empty)
            assert "/dev" not in empty
            assert still_empty(made.pid, empty)
            dumped(made, images, dump_conf(empty_tmpfs=empty))
            assert sorted(drop_empty_tmpfs(images)) == sorted(empty)
            assert len(list(images.glob("tmpfs-dev-*"))) == 1  # /dev
            restored(made, images)
            assert client.ask() == f"{n + 1} still here"
            assert made.inside(LOOK) == before


def test_a_file_in_shm_keeps_it_from_being_taken_as_empty(tmp_path: Path) -> None:
    with container(tmp_path) as made, made.client() as client:
        empty = empty_tmpfs(made.pid)
        made.inside("open('/dev/shm/kept', 'w').write('kept')")
        assert not still_empty(made.pid, empty)
        assert "/dev/shm" not in empty_tmpfs(made.pid)
        dumped(made, tmp_path / "1", dump_conf(empty_tmpfs=empty_tmpfs(made.pid)))
        drop_empty_tmpfs(tmp_path / "1")
        restored(made, tmp_path / "1")
        assert made.inside("print(open('/dev/shm/kept').read())") == "kept"
        assert client.ask() == "1 still here"


def test_shared_memory_without_a_name_survives_in_an_empty_shm(tmp_path: Path) -> None:
    extra = """
import mmap, os
f = open('/dev/shm/gone', 'w+b'); f.truncate(1 << 20); shared = mmap.mmap(f.fileno(), 0); shared[:4] = b'word'
os.unlink('/dev/shm/gone')
"""
    program = SERVER.replace("{gone.read()}", "{shared[:4].decode()}")
    with container(tmp_path, (PYTHON, "-c", program), {"EXTRA": extra}) as made, made.client() as client:
        assert client.ask() == "1 word"
        empty = empty_tmpfs(made.pid)
        assert "/dev/shm" in empty
        dumped(made, tmp_path / "1", dump_conf(empty_tmpfs=empty))
        drop_empty_tmpfs(tmp_path / "1")
        restored(made, tmp_path / "1")
        assert client.ask() == "2 word"


def test_an_inotify_watch_in_the_overlay_survives_with_its_path(tmp_path: Path) -> None:
    with container(tmp_path, env={"EXTRA": criu_troubles.INOTIFY}) as made, made.client() as client:
        dumped(made, tmp_path / "1", dump_conf(irmap_paths=["/opt/app"]))
        restored(made, tmp_path / "1")
        assert client.ask() == "1 still here"


REFUSED = {
    "IO_URING": "io_uring",
    "MPTCP": "mptcp",
    "USERFAULTFD": "userfaultfd",
    "LANDLOCK": "landlock",
    "PERF": "kernel-object",
    "NOT_ACCEPTED": "in-flight-connection",
    "BIG_DELETED": "ghost-limit",
    "INOTIFY": "inotify",
    "UNIX_OUTSIDE": "unix-socket-outside",
    "MQUEUE": "file-outside",
    "NESTED_PID": "nested-namespace",
    "TRACED": "traced",
}


@pytest.mark.parametrize("trouble", sorted(REFUSED))
def test_a_refused_dump_names_the_cause_and_the_app_runs_on(
    tmp_path: Path, trouble: str, listener_outside: dict[str, object]
) -> None:
    env = {"EXTRA": getattr(criu_troubles, trouble)}
    with container(tmp_path, env=env, mounts=[listener_outside]) as made, made.client() as client:
        assert client.ask() == "1 still here"
        done = made.dump(tmp_path / "images", dump_conf(freeze_seconds=1))
        assert done.returncode != 0
        cause = explain(made.work / "dump.log", done.stderr)
        assert cause.code == REFUSED[trouble], cause
        assert client.ask() == "2 still here"
        assert made.status == "running"


@pytest.fixture
def listener_outside(tmp_path: Path) -> Iterator[dict[str, object]]:
    """A mount with a unix socket on which a process of the host listens."""
    (tmp_path / "outside").mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "outside" / "sock"))
    server.listen()
    with server:
        yield {"destination": "/outside", "type": "bind", "source": str(tmp_path / "outside"), "options": ["rbind"]}


COMMIT = """\
#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
exec {python} {program}
"""
COMMIT_PROGRAM = """
from pathlib import Path
from kybernate.criu import drop_empty_tmpfs
from kybernate.store import FolderStore, Staging
staging = Staging("chat-0", 1, Path({images!r}))
drop_empty_tmpfs(staging.images)
FolderStore(Path({root!r}), bytes(32)).commit(staging, {{"criu": "4.2.1"}})
{then}
"""


def with_commit(folder: Path, images: Path, then: str = "") -> str:
    """The lines of a configuration that commits to the store in post-dump."""
    (folder / "commit.py").write_text(COMMIT_PROGRAM.format(images=str(images), root=str(folder / "store"), then=then))
    script = folder / "post-dump"
    script.write_text(COMMIT.format(python=sys.executable, program=folder / "commit.py"))
    script.chmod(0o700)
    return f"action-script {script}\n"


def test_a_commit_within_post_dump_is_what_is_restored(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store", bytes(32))
    with container(tmp_path) as made, made.client() as client:
        images = store.stage("chat-0", 1, 64 << 20).images
        conf = dump_conf(empty_tmpfs=empty_tmpfs(made.pid)) + with_commit(tmp_path, images)
        dumped(made, images, conf)
        (manifest,) = store.manifests("chat-0")
        listed = {file.name for file in manifest.files}
        assert {"inventory.img", "pages-1.img", "descriptors.json"} <= listed
        assert "stats-dump" not in listed
        store.check(manifest)
        restored(made, store.images(manifest))
        store.check(manifest)  # a restore changes nothing
        assert client.ask() == "1 still here"


def test_a_veto_in_post_dump_undoes_the_dump(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store", bytes(32))
    with container(tmp_path) as made, made.client() as client:
        images = store.stage("chat-0", 1, 64 << 20).images
        done = made.dump(images, dump_conf() + with_commit(tmp_path, images, then="raise SystemExit(1)"))
        assert done.returncode != 0
        assert explain(made.work / "dump.log", done.stderr).code == "vetoed"
        assert made.status == "running"
        assert client.ask() == "1 still here"


def test_a_full_disk_is_named_and_the_app_runs_on(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path / "small"))
    try:
        with container(tmp_path, env={"BALLAST_MIB": "8"}) as made, made.client() as client:
            done = made.dump(tmp_path / "small" / "images", dump_conf())
            assert done.returncode != 0
            assert explain(made.work / "dump.log", done.stderr).code == "no-space"
            assert client.ask() == "1 still here"
    finally:
        run("umount", str(tmp_path / "small"))


def test_an_overlay_that_comes_with_a_recursive_bind_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    for name in ("shared/inner", "lower", "upper2", "work2"):
        (tmp_path / name).mkdir(parents=True)
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper2,workdir={tmp_path}/work2"
    run("mount", "-t", "overlay", "overlay", "-o", options, str(shared / "inner"))
    bind = {"destination": "/shared", "type": "bind", "source": str(shared), "options": ["rbind"]}
    try:
        with container(tmp_path, mounts=[bind]) as made:
            destinations = [m["destination"] for m in json.loads((made.bundle / "config.json").read_text())["mounts"]]
            with pytest.raises(OverlayInBindError, match="/shared/inner"):
                refuse_unsuitable("c", [made.pid], init=made.pid, destinations=destinations, sys_resource=False)
            refuse_unsuitable(
                "c", [made.pid], init=made.pid, destinations=[*destinations, "/shared/inner"], sys_resource=False
            )
    finally:
        run("umount", str(shared / "inner"))


def test_a_volume_that_shares_its_propagation_is_named(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "inner").mkdir(parents=True)
    run("mount", "--bind", str(shared), str(shared))
    run("mount", "--make-shared", str(shared))
    run("mount", "-t", "tmpfs", "tmpfs", str(shared / "inner"))
    bind = {"destination": "/shared", "type": "bind", "source": str(shared), "options": ["rbind", "rslave"]}
    try:
        with container(tmp_path, mounts=[bind]) as made, made.client() as client:
            done = made.dump(tmp_path / "images", dump_conf())
            cause = explain(made.work / "dump.log", done.stderr)
            assert (done.returncode != 0, cause.code) == (True, "shared-mount")
            assert "/shared/inner" in cause.message
            assert client.ask() == "1 still here"
    finally:
        run("umount", "--recursive", str(shared))


KDAT = """
import ctypes, os, subprocess
from pathlib import Path
from kybernate.criu import kdat

libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"none", b"/", None, ctypes.c_ulong(0x44000), None) == 0  # private
assert libc.mount(b"ramfs", b"/run", b"ramfs", ctypes.c_ulong(0), None) == 0  # no tmpfs, whatever the machine has
assert not kdat.is_kept() and not kdat.is_stale()
assert kdat.prime() and kdat.is_kept() and not kdat.prime()
log = Path("{folder}/log")
subprocess.run(["criu", "check", "-v4"], stdout=log.open("wb"), stderr=subprocess.STDOUT, check=True)
assert "Loaded kdat cache" in log.read_text()
kdat.unprime(); kdat.unprime()
assert not kdat.is_kept() and not kdat.CACHE.exists()

assert libc.mount(b"tmpfs", b"/run", b"tmpfs", ctypes.c_ulong(0), None) == 0
left = Path("/run/criu.kdat.tmp"); left.touch()
assert not kdat.is_stale() and not kdat.clear_stale()  # too young
os.utime(left, (0, 0))
assert kdat.is_stale() and kdat.clear_stale() and not kdat.clear_stale()
assert kdat.is_kept() and not kdat.prime()
subprocess.run(["criu", "check"], stdout=log.open("wb"), stderr=subprocess.STDOUT, check=True)
assert kdat.CACHE.stat().st_size > 0
"""


def test_criu_gets_a_cache_where_run_is_no_tmpfs_and_loses_a_stale_one(tmp_path: Path) -> None:
    code = textwrap.dedent(KDAT).replace("{folder}", str(tmp_path))
    command = ["unshare", "--mount", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_mounts_are_read_with_their_real_names(tmp_path: Path) -> None:
    odd = tmp_path / "with blank"
    odd.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", str(odd))
    try:
        assert [mount.kind for mount in mounts("self") if mount.mountpoint == str(odd)] == ["tmpfs"]
    finally:
        run("umount", str(odd))
