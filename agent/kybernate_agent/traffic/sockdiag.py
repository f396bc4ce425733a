"""What the kernel knows of a pod's TCP sockets: one dump of both families, with tcp_info.

A socket has a cookie that no other gets while the machine runs, and an inode while a process has it open (0: not
accepted yet, or closed by its process). Addresses of dual-stack sockets (::ffff:a.b.c.d) are given as the IPv4
addresses they are.

A FIN is counted by the kernel as one byte received and, until it is read, as one byte in the receive queue. It is
nobody's data, so it is taken off here.

Ages are in milliseconds but move in jiffies (1, 4 or 10 ms by the kernel's HZ): two events in one jiffy have equal
ages.

Source: include/uapi/linux/inet_diag.h, include/uapi/linux/tcp.h, net/ipv4/tcp.c (tcp_get_info); kernel >= 4.19.
"""

from __future__ import annotations

import enum
import errno
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from . import netlink
from .packets import Flow

NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_REQUEST = struct.Struct("=BBBBI")
_SOCKET_ID = struct.Struct("!HH16s16s")
_MESSAGE = struct.Struct("=BBBB48s5I")
_COOKIE_OFFSET = 44  # of the 64-bit cookie in an inet_diag_msg
_NO_COOKIE = b"\xff" * 8
_INFO = 2
_INFO_BYTES = 216  # up to bytes_retrans, which came with Linux 4.19
_ALL_STATES = 0x1FFF
_V4_MAPPED = bytes(10) + b"\xff\xff"
_DUMP_BYTES = 256 << 10


class State(enum.IntEnum):
    """TCP states, as the kernel numbers them."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
    BOUND = 13


_FIN_RECEIVED = frozenset({State.CLOSE_WAIT, State.LAST_ACK, State.CLOSING})


@dataclass(frozen=True, slots=True)
class Socket:
    """One TCP socket. Lengths in bytes, but for a listener `unread` counts connections that nobody has accepted."""

    state: State
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    cookie: int
    inode: int
    unread: int
    received: int = 0
    sent: int = 0
    sent_age_ms: int = 0
    received_age_ms: int = 0
    window: int = 1

    @property
    def flow(self) -> Flow:
        """The connection, as packets.Segment.flow writes it: peer first."""
        return self.remote, self.remote_port, self.local, self.local_port


class SockDiag:
    """Asks the namespace in which it was made. Not for two threads at once."""

    def __init__(self) -> None:
        self._sock = netlink.open_socket(NETLINK_SOCK_DIAG, 1 << 20)
        self._sequence = 0

    def close(self) -> None:
        self._sock.close()

    def dump(self) -> list[Socket]:
        """Every TCP socket of the namespace but TIME_WAIT. Raises NetlinkError."""
        found: list[Socket] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            states = _ALL_STATES & ~(1 << State.TIME_WAIT)
            body = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, states) + bytes(48)
            found.extend(self._ask(netlink.NLM_F_DUMP, body))
        return found

    def find(self, flow: Flow, ifindex: int) -> Socket | None:
        """The socket that a packet of `flow` (peer first) would reach, without tcp_info; None: there is none."""
        remote, remote_port, local, local_port = flow
        family = socket.AF_INET if len(local) == 4 else socket.AF_INET6
        identity = _SOCKET_ID.pack(local_port, remote_port, local, remote) + struct.pack("=I", ifindex) + _NO_COOKIE
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES) + identity
        found = self._ask(0, body)
        return found[0] if found else None

    def _ask(self, flags: int, body: bytes) -> list[Socket]:
        self._sequence += 1
        self._sock.send(netlink.message(_BY_FAMILY, flags, self._sequence, body))
        found: list[Socket] = []
        while True:
            try:
                data = self._sock.recv(_DUMP_BYTES)
            except BlockingIOError:
                raise netlink.NetlinkError(what="a dump of TCP sockets", reason="the answer has no end") from None
            for kind, sequence, start, end in netlink.messages(data):
                if sequence != self._sequence:
                    continue
                if kind == netlink.NLMSG_DONE:
                    return found
                if kind == netlink.NLMSG_ERROR:
                    number = netlink.error_number(data, start)
                    if number == errno.ENOENT:
                        return found
                    raise netlink.NetlinkError(what="a dump of TCP sockets", reason=os.strerror(number))
                found.append(_socket(data, start, end))
                if not flags:
                    return found


def _socket(data: bytes, start: int, end: int) -> Socket:
    family, state, _, _, identity, _expires, rqueue, _wqueue, _uid, inode = _MESSAGE.unpack_from(data, start)
    local_port, remote_port, local, remote = _SOCKET_ID.unpack_from(identity)
    cookie = struct.unpack_from("=Q", data, start + _COOKIE_OFFSET)[0]
    known = State(state) if state in State._value2member_map_ else State.CLOSE
    finished = 1 if known in _FIN_RECEIVED else 0
    common = (known, _address(family, local), local_port, _address(family, remote), remote_port)
    unread = max(0, rqueue - finished)
    for kind, first, last in netlink.attributes(data, start + _MESSAGE.size, end):
        if kind == _INFO and last - first >= _INFO_BYTES and known != State.LISTEN:
            sent_age, _, received_age = struct.unpack_from("=III", data, first + 44)
            received = max(0, struct.unpack_from("=Q", data, first + 128)[0] - finished)
            sent, again = struct.unpack_from("=QQ", data, first + 200)
            window = _window(data, first, last)
            return Socket(*common, cookie, inode, unread, received, sent - again, sent_age, received_age, window)
    return Socket(*common, cookie, inode, unread)


def _window(data: bytes, first: int, last: int) -> int:
    """The window field of the socket's last segment; 1 where the kernel (before 6.2) does not tell."""
    if last - first < 236:
        return 1
    scale = data[first + 6] >> 4
    return min(0xFFFF, int(struct.unpack_from("=I", data, first + 232)[0]) >> scale)


def _address(family: int, packed: bytes) -> bytes:
    if family == socket.AF_INET:
        return packed[:4]
    return packed[12:] if packed.startswith(_V4_MAPPED) else packed


def socket_inodes(pids: Iterable[int]) -> set[int]:
    """The inodes of all sockets that the processes hold open; a process that has ended holds none."""
    found: set[int] = set()
    for pid in pids:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except (FileNotFoundError, ProcessLookupError):
            continue
        for name in names:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except (FileNotFoundError, ProcessLookupError):
                continue  # closed since the listing
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
    return found


def ports_of(sockets: Iterable[Socket], inodes: set[int]) -> frozenset[int]:
    """Local ports of the sockets with these inodes, listening and connected, outgoing ones included.

    A connection that nobody has accepted has no inode, but its listener's port.
    """
    return frozenset(found.local_port for found in sockets if found.inode in inodes and found.local_port)


def own_ports(pids: Iterable[int], netns: str) -> frozenset[int]:
    """Local ports of all TCP sockets that the processes have open in the network namespace at path `netns`.

    These are the ports that watch and hold need besides the declared ones. Blocks for about a millisecond.
    Raises NetnsGoneError, NetlinkError, OSError (no right to).
    """
    diag = netlink.in_netns(netns, SockDiag)
    try:
        return ports_of(diag.dump(), socket_inodes(pids))
    finally:
        diag.close()
