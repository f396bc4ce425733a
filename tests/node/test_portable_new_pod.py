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


# What a program may hold open: set up, ask (before and after), and what it answers each time.
HELD = {
    "a deleted file of an emptyDir": (
        "f = open('/data/gone', 'w+'); f.write('kept'); f.flush(); os.remove('/data/gone')",
        "(f.seek(0), f.read())[1]",
        "kept",
    ),
    "a deleted file of the layer": (
        "f = open('/var/gone', 'w+'); f.write('kept'); f.flush(); os.remove('/var/gone')",
        "(f.seek(0), f.read())[1]",
        "kept",
    ),
    "a deleted file of /dev/shm, mapped": (
        "f = open('/dev/shm/gone', 'w+b'); f.truncate(4096); m = mmap.mmap(f.fileno(), 4096); m[:4] = b'kept'; "
        "os.remove('/dev/shm/gone')",
        "m[:4].decode()",
        "kept",
    ),
    "one of two names of an emptyDir's file, deleted": (
        "f = open('/data/one', 'w+'); f.write('kept'); f.flush(); "
        "os.link('/data/one', '/data/two'); os.remove('/data/one')",
        "[(f.seek(0), f.read())[1], open('/data/two').read(), sorted(n for n in os.listdir('/data') if 'remap' in n)]",
        ["kept", "kept", []],
    ),
    "a lock on an emptyDir's file": (
        "import fcntl; f = open('/data/lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)",
        "[fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB), os.path.exists('/data/lock')]",
        [None, True],
    ),
    "a shared mapping of an emptyDir's file": (
        "f = open('/data/map', 'w+b'); f.truncate(4096); m = mmap.mmap(f.fileno(), 4096)",
        "(m.__setitem__(slice(0, 4), b'kept'), open('/data/map').read(4))[1]",
        "kept",
    ),
    "a unix socket in an emptyDir": (
        "u = socket.socket(socket.AF_UNIX); u.bind('/data/sock'); u.listen()",
        "(lambda c: (c.connect('/data/sock'), u.accept()[0].send(b'kept'), c.recv(4).decode())[2])"
        "(socket.socket(socket.AF_UNIX))",
        "kept",
    ),
    "a FIFO in an emptyDir": (
        "os.mkfifo('/data/fifo'); f = os.open('/data/fifo', os.O_RDWR)",
        "(os.write(f, b'kept'), os.read(f, 4).decode())[1]",
        "kept",
    ),
    "a watch on an emptyDir": (
        "import ctypes; libc = ctypes.CDLL(None); w = libc.inotify_init1(0o4000); "
        "libc.inotify_add_watch(w, b'/data', 0x100)",
        "(open(f'/data/new{count}', 'w').close(), os.read(w, 4096)[16:19].decode())[1]",
        "new",
    ),
    "a folder of an emptyDir to work in": (
        "os.makedirs('/data/work/here'); os.chdir('/data/work/here')",
        "os.getcwd()",
        "/data/work/here",
    ),
    "a System V segment": (
        "import ctypes; libc = ctypes.CDLL(None); n = libc.shmget(4711, 4096, 0o1600); "
        "libc.shmat.restype = ctypes.c_void_p; a = libc.shmat(n, None, 0); ctypes.memmove(a, b'kept', 4)",
        "[ctypes.string_at(a, 4).decode(), libc.shmget(4711, 4096, 0o600) >= 0]",
        ["kept", True],
    ),
    "a listener on the pod's own address": (
        "own = lambda: socket.gethostbyname(socket.gethostname()); s = socket.create_server((own(), 9090))",
        "[s.getsockname() == (own(), 9090), "
        "(socket.create_connection((own(), 9090), 5).close(), s.accept()[0].close())[1]]",
        [True, None],
    ),
    "a UDP socket with a peer outside": (
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('198.51.100.1', 53)); "
        "own = lambda: socket.gethostbyname(socket.gethostname())",
        "[u.getsockname()[0] == own(), u.getpeername()[0], u.send(b'x')]",
        [True, "198.51.100.1", 1],
    ),
    "a UDP socket that listens and one that has a peer": (
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('', 5353)); "
        "v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); v.connect(('127.0.0.1', 5353))",
        "(v.send(b'kept'), u.recv(4).decode())[1]",
        "kept",
    ),
}


@pytest.mark.parametrize("held", sorted(HELD))
async def test_what_the_program_holds_works_in_a_new_pod(bed: Bed, held: str) -> None:
    extra, ask, expected = HELD[held]
    app = workload("keep", {"env": [{"name": "EXTRA", "value": extra}, {"name": "ASK", "value": ask}]})
    old = await bed.start(app)
    client = await first(old)
    assert client.ask()["extra"] == expected
    manifest = await bed.park(old)
    await bed.pods.remove_pod(old)
    client.close()
    new = await bed.start_restored(app, manifest)
    assert await bed.wake(new, manifest) is None
    client = await first(new)
    found = client.ask()
    assert (found["extra"], found["count"]) == (expected, 2)
    client.close()
