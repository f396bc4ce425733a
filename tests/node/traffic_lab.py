"""Two network namespaces joined by a veth pair, and what the traffic tests do in them.

`Link.pod` stands for a pod, `Link.peer` for everything outside. Sockets are made inside and used from the test's loop.
`vanish` and `reappear` do to one connection what CRIU does to it (TCP_REPAIR), with the sequence numbers, options and
windows but without queued data: tests that need more use CRIU itself.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kybernate_agent.traffic.netlink import in_netns

PORT = 8080
LIMIT_SECONDS = 10.0
_numbers = itertools.count()

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_OPTIONS = 19, 20, 21, 22
TCP_TIMESTAMP, TCP_REPAIR_WINDOW = 24, 29


@dataclass(frozen=True)
class Link:
    """Paths of the two namespaces and the pod's addresses; `peer` addresses end in 2."""

    pod: str
    peer: str
    v4: str = "10.231.7.1"
    v6: str = "fd23:1:7::1"

    def address(self, way: str) -> tuple[str, str]:
        """(namespace of the client, address of the pod) for v4, v6, lo or lo6."""
        return {
            "v4": (self.peer, self.v4),
            "v6": (self.peer, self.v6),
            "lo": (self.pod, "127.0.0.1"),
            "lo6": (self.pod, "::1"),
        }[way]

    def rules(self) -> str:
        """Everything in table mangle of the pod, both families."""
        programs = ("iptables-save", "ip6tables-save")
        return "".join(run("nsenter", f"--net={self.pod}", program, "-t", "mangle") for program in programs)

    def queues(self) -> str:
        return run("nsenter", f"--net={self.pod}", "cat", "/proc/net/netfilter/nfnetlink_queue")


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout


@contextmanager
def link() -> Iterator[Link]:
    names = [f"kyb-traffic-{os.getpid()}-{next(_numbers)}-{end}" for end in ("pod", "peer")]
    try:
        for name in names:
            run("ip", "netns", "add", name)
        pod, peer = names
        run("ip", "-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", peer)
        for number, name in enumerate(names, 1):
            run("ip", "-n", name, "addr", "add", f"10.231.7.{number}/24", "dev", "eth0")
            run("ip", "-n", name, "addr", "add", f"fd23:1:7::{number}/64", "dev", "eth0", "nodad")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        yield Link(f"/run/netns/{pod}", f"/run/netns/{peer}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


class Wakes:
    """The reasons of every on_wake, and a way to wait for the next."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._queue: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self._queue.put_nowait(reason)

    async def next(self) -> str:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await self._queue.get()


def listen(netns: str, address: str = "::", port: int = PORT) -> socket.socket:
    """A listener inside `netns`; at `::` it takes IPv4 too."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(64)
        sock.setblocking(False)
        return sock

    return in_netns(netns, make)


def client(netns: str, address: str, *, keepalive: bool = False, buffer_bytes: int = 0) -> socket.socket:
    """An unconnected socket inside `netns`; with `keepalive` it probes each second and gives up after three."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setblocking(False)
        if buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        if keepalive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        return sock

    return in_netns(netns, make)


async def connect(sock: socket.socket, address: str, port: int = PORT) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        await asyncio.get_running_loop().sock_connect(sock, (address, port))


async def accept(listener: socket.socket) -> socket.socket:
    async with asyncio.timeout(LIMIT_SECONDS):
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
    return sock


async def send(sock: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, size: int = 65536) -> bytes:
    async with asyncio.timeout(LIMIT_SECONDS):
        return await asyncio.get_running_loop().sock_recv(sock, size)


async def receive_all(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await receive(sock)
        if not more:
            break
        data += more
    return data


async def until(condition: Callable[[], object], limit_seconds: float = LIMIT_SECONDS) -> None:
    """Poll until `condition` is true; for states of the kernel that send no event."""
    async with asyncio.timeout(limit_seconds):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Vanished:
    """A connection without a socket, ready to come back."""

    local: tuple[str, int]
    remote: tuple[str, int]
    family: int
    send_sequence: int
    receive_sequence: int
    options: bytes
    timestamp: int
    window: bytes
    mss: int


def vanish(sock: socket.socket) -> Vanished:
    """Take the socket away without a word to its peer. It must have empty queues."""
    tcp = socket.IPPROTO_TCP
    local, remote = sock.getsockname()[:2], sock.getpeername()[:2]
    info = sock.getsockopt(tcp, socket.TCP_INFO, 256)
    sock.setsockopt(tcp, TCP_REPAIR, 1)
    sequences = []
    for queue in (1, 2):
        sock.setsockopt(tcp, TCP_REPAIR_QUEUE, queue)
        sequences.append(sock.getsockopt(tcp, TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    scales = info[6]
    options = struct.pack("=IIII", 4, 0, 3, (scales & 15) | (scales >> 4) << 16)
    if info[5] & 1:
        options += struct.pack("=II", 8, 0)
    mss = struct.unpack_from("=I", info, 16)[0]
    stamp = sock.getsockopt(tcp, TCP_TIMESTAMP) & 0xFFFFFFFF
    window = sock.getsockopt(tcp, TCP_REPAIR_WINDOW, 20)
    family = sock.family
    sock.close()
    return Vanished(local, remote, family, sequences[1], sequences[0], options, stamp, window, mss)


def reappear(netns: str, gone: Vanished) -> socket.socket:
    """The same connection on a new socket."""
    tcp = socket.IPPROTO_TCP

    def make() -> socket.socket:
        sock = socket.socket(gone.family)
        sock.setsockopt(tcp, TCP_REPAIR, 1)  # also lets it bind beside its listener
        for queue, sequence in ((1, gone.receive_sequence), (2, gone.send_sequence)):
            sock.setsockopt(tcp, TCP_REPAIR_QUEUE, queue)
            sock.setsockopt(tcp, TCP_QUEUE_SEQ, struct.pack("=I", sequence))
        sock.bind(gone.local)
        sock.connect(gone.remote)
        sock.setsockopt(tcp, TCP_REPAIR_OPTIONS, struct.pack("=II", 2, gone.mss) + gone.options)
        sock.setsockopt(tcp, TCP_TIMESTAMP, struct.pack("=I", gone.timestamp))
        sock.setsockopt(tcp, TCP_REPAIR_WINDOW, gone.window)
        sock.setsockopt(tcp, TCP_REPAIR, 0)
        sock.setblocking(False)
        return sock

    return in_netns(netns, make)


_ECHO = """
import asyncio, sys
async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
async def main():
    server = await asyncio.start_server(echo, None, int(sys.argv[1]))
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


class FrozenServer:
    """An echo server in the pod that SIGSTOP stops: it stands in for an app in a frozen cgroup.

    Unlike the freezer, SIGSTOP is seen by its parent; for the network both are the same: the kernel answers, nobody
    reads.
    """

    def __init__(self, netns: str) -> None:
        argv = ["nsenter", f"--net={netns}", sys.executable, "-c", _ECHO, str(PORT)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> FrozenServer:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rsplit(")", 1)[1].split()[0] != "T":
            os.sched_yield()

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)
