"""Netlink, as little of it as the traffic room needs, and how to own a socket in another network namespace.

A netlink message is a header (length, type, flags, sequence, port), a fixed body that the family defines, and
attributes: each a length, a type and a value padded to four bytes. The kernel works on a request while `send` runs, so
its answer lies in the receive queue when `send` returns: nothing here ever waits.

A socket belongs for good to the network namespace that its creator stood in, and works from any thread afterwards. So
nobody needs to stay in a pod's namespace: a thread of its own enters it, makes the sockets, and ends there.

Source: include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from kybernate.errors import ExternalError, NotFoundError

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
_ATTRIBUTE_TYPE_MASK = 0x3FFF  # the upper two bits are flags (nested, network byte order)
_CLONE_NEWNET = 0x40000000

HEADER_BYTES = _HEADER.size
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
SO_RCVBUFFORCE = 33

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class NetnsGoneError(NotFoundError):
    """{netns}: there is no network namespace ({reason}). The pod's sandbox has ended; start the instance again."""


class NetlinkError(ExternalError):
    """The kernel refused {what}: {reason}. Run `kybernate doctor`: it tests netfilter and sock_diag."""


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One request, addressed to the kernel."""
    return _HEADER.pack(HEADER_BYTES + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, start, end) of each attribute's value between `offset` and `end` of `data`; a cut one ends the walk."""
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            return
        yield kind & _ATTRIBUTE_TYPE_MASK, offset + 4, offset + size
        offset += (size + 3) & ~3


def messages(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(type, sequence, start, end) of each message's body in one datagram."""
    offset = 0
    while offset + HEADER_BYTES <= len(data):
        size, kind, _flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if size < HEADER_BYTES or offset + size > len(data):
            return
        yield kind, sequence, offset + HEADER_BYTES, offset + size
        offset += (size + 3) & ~3


def error_number(data: bytes, start: int) -> int:
    """The errno in an NLMSG_ERROR's body; 0 is an acknowledgement."""
    return -int(_ERRNO.unpack_from(data, start)[0])


def open_socket(protocol: int, receive_bytes: int = 0) -> socket.socket:
    """A non-blocking netlink socket in the calling thread's namespace, with room for `receive_bytes` of messages."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.bind((0, 0))
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
    except BaseException:
        sock.close()
        raise
    return sock


def in_netns(netns: str | os.PathLike[str], make: Callable[[], T]) -> T:
    """What `make` returns when it is called inside the network namespace at path `netns`.

    `make` runs in a thread that ends there, so no thread of the agent ever finds itself in a pod's network. It must not
    block. Raises NetnsGoneError where the path is no network namespace, and whatever `make` raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            _setns(os.fspath(netns))
            results.append(make())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter, name="kybernate-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _setns(netns: str) -> None:
    # os.setns came with Python 3.12; 3.11 is supported.
    try:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetnsGoneError(netns=netns, reason=error.strerror) from error
    try:
        if _libc.setns(fd, _CLONE_NEWNET) != 0:
            raise NetnsGoneError(netns=netns, reason=os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)
