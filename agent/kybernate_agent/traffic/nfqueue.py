"""The queue that netfilter hands packets to, and the verdicts on them.

A rule with target NFQUEUE stops a packet and tells the one listener of that queue number in that network namespace; the
packet stays in the kernel until a verdict comes. Three facts shape everything above:

- Without a listener the kernel drops what the rule stops (we never set bypass or fail-open): TCP sends it again.
- When the listener's socket closes, the kernel drops what waited.
- What does not fit (queue length, receive buffer) is dropped too.

So whatever happens to the agent, no packet slips through to a socket that is not there.

Source: include/uapi/linux/netfilter/nfnetlink_queue.h, net/netfilter/nfnetlink_queue.c.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

from kybernate.errors import RefusedError

from . import netlink

NETLINK_NETFILTER = 12
QUEUE_LENGTH = 8192  # packets; twice what PodTraffic holds, so its bound decides and not the kernel's
COPY_BYTES = 256  # the longest IPv4 header + TCP header is 120 bytes; IPv6 gets room for extension headers
RECEIVE_BYTES = 16 << 20  # a waiting message costs about 1 KiB: room for a full queue
ACCEPT = 1
DROP = 0
_REPEAT = 4

_SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG, _VERDICT_BATCH = (_SUBSYSTEM | kind for kind in range(4))
_NFGENMSG = struct.Struct("!BBH")
_CFG_CMD, _CFG_PARAMS, _CFG_MAXLEN, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_CMD_BIND, _CMD_UNBIND = 1, 2
_COPY_PACKET = 2
_FLAG_GSO = 4  # a large segment comes as one packet, not cut into frames
_FLAG_FAIL_OPEN = 1
_PACKET_HDR, _VERDICT_HDR, _IFINDEX_INDEV, _IFINDEX_OUTDEV, _PAYLOAD, _CAP_LEN = 1, 2, 5, 6, 10, 13
_HOOK_OFFSET, _LOCAL_OUT = 6, 3  # in nfqnl_msg_packet_hdr: which hook stopped the packet
_U32 = struct.Struct("!I")
_VERDICT_MESSAGE = struct.Struct("=IHHIIBB2sHH4s4s")
_MARKED_VERDICT_MESSAGE = struct.Struct("=IHHIIBB2sHH4s4sHH4s")
_MARK = 3
_VERDICTS = {verdict: _U32.pack(verdict) for verdict in (ACCEPT, DROP, _REPEAT)}


class QueueTakenError(RefusedError):
    """Queue {number} of this network namespace has another listener. Only one agent may run: stop the other."""


class Packet(NamedTuple):
    """A packet that waits in the kernel: its id for the verdict, the interface by which it comes or leaves, its first
    bytes and its full length.
    """

    id: int
    ifindex: int
    data: bytes
    length: int
    leaves: bool


class Queue:
    """One queue number of one network namespace: made there, listened to from anywhere.

    `packets` hands out what has come; every packet then needs a verdict, or its place in the queue is lost until
    `unbind`.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.overruns = 0  # times the receive buffer was full; those packets were dropped by the kernel
        self._sock = netlink.open_socket(NETLINK_NETFILTER, RECEIVE_BYTES)
        self._sequence = 0
        self._early: list[Packet] = []
        self._number_be = struct.pack("!H", number)

    def fileno(self) -> int:
        return self._sock.fileno()

    def bind(self) -> None:
        """Become the listener. Raises QueueTakenError, NetlinkError."""
        command = netlink.attribute(_CFG_CMD, struct.pack("!BBH", _CMD_BIND, 0, 0))
        params = netlink.attribute(_CFG_PARAMS, struct.pack("!IB", COPY_BYTES, _COPY_PACKET))
        length = netlink.attribute(_CFG_MAXLEN, _U32.pack(QUEUE_LENGTH))
        flags = netlink.attribute(_CFG_MASK, _U32.pack(_FLAG_GSO | _FLAG_FAIL_OPEN))
        flags += netlink.attribute(_CFG_FLAGS, _U32.pack(_FLAG_GSO))
        self._configure(command + params + length + flags)

    def unbind(self) -> None:
        """Stop listening; the kernel drops what waits."""
        self._configure(netlink.attribute(_CFG_CMD, struct.pack("!BBH", _CMD_UNBIND, 0, 0)))

    def close(self) -> None:
        """Idempotent. Unbinds, as any end of the process does."""
        self._sock.close()

    def packets(self, limit: int = 256) -> list[Packet]:
        """At most `limit` packets that have come since the last call, in order; never waits."""
        found, self._early = self._early, []
        while len(found) < limit:
            try:
                data = self._sock.recv(4096)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                continue
            self._read(data, found)
        return found

    def verdict(self, packet_id: int, verdict: int) -> None:
        """Let one packet go on (ACCEPT) or end it (DROP). A packet that the kernel has already given up is no error."""
        self._send_verdict(_VERDICT, packet_id, verdict)

    def repeat(self, packet_id: int, mark: int) -> None:
        """Send one packet through the rules again, with this mark on it. A packet that has gone is no error."""
        header = (40, _VERDICT, netlink.NLM_F_REQUEST, 0, 0, 0, 0, self._number_be, 12, _VERDICT_HDR)
        verdict = (_VERDICTS[_REPEAT], _U32.pack(packet_id), 8, _MARK, _U32.pack(mark))
        self._sock.send(_MARKED_VERDICT_MESSAGE.pack(*header, *verdict))

    def verdict_up_to(self, packet_id: int, verdict: int) -> None:
        """The same verdict for every waiting packet with this id or an older one, in the order they came."""
        self._send_verdict(_VERDICT_BATCH, packet_id, verdict)

    def _send_verdict(self, kind: int, packet_id: int, verdict: int) -> None:
        header = (32, kind, netlink.NLM_F_REQUEST, 0, 0, 0, 0, self._number_be, 12, _VERDICT_HDR)
        self._sock.send(_VERDICT_MESSAGE.pack(*header, _VERDICTS[verdict], _U32.pack(packet_id)))

    def _configure(self, settings: bytes) -> None:
        self._sequence += 1
        body = _NFGENMSG.pack(0, 0, self.number) + settings
        self._sock.send(netlink.message(_CONFIG, netlink.NLM_F_ACK, self._sequence, body))
        while True:
            try:
                data = self._sock.recv(4096)
            except BlockingIOError:
                raise netlink.NetlinkError(what=f"queue {self.number}", reason="no acknowledgement") from None
            for kind, sequence, start, _end in netlink.messages(data):
                if kind == netlink.NLMSG_ERROR and sequence == self._sequence:
                    self._raise(netlink.error_number(data, start))
                    return
            self._read(data, self._early)

    def _raise(self, number: int) -> None:
        if number in (errno.EPERM, errno.EBUSY):
            raise QueueTakenError(number=self.number)
        if number:
            raise netlink.NetlinkError(what=f"queue {self.number}", reason=os.strerror(number))

    def _read(self, data: bytes, found: list[Packet]) -> None:
        for kind, _sequence, start, end in netlink.messages(data):
            if kind != _PACKET:
                continue  # an error about a verdict: its packet is gone already
            packet_id = ifindex = length = 0
            payload, leaves = b"", False
            for name, first, last in netlink.attributes(data, start + 4, end):
                if name == _PACKET_HDR:
                    packet_id = _U32.unpack_from(data, first)[0]
                    leaves = data[first + _HOOK_OFFSET] == _LOCAL_OUT
                elif name in (_IFINDEX_INDEV, _IFINDEX_OUTDEV):
                    ifindex = _U32.unpack_from(data, first)[0]
                elif name == _PAYLOAD:
                    payload = data[first:last]
                elif name == _CAP_LEN:
                    length = _U32.unpack_from(data, first)[0]
            found.append(Packet(packet_id, ifindex, payload, length or len(payload), leaves))
