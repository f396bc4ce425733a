"""What PodTraffic has inside a pod's network namespace: the queue, sock_diag, raw sockets, the counters."""

from __future__ import annotations

import contextlib
import os
import socket

from . import nfqueue
from .rules import MARK, QUEUE_NUMBER
from .sockdiag import SockDiag

_SNMP = "/proc/thread-self/net/snmp"
_IF_INET6 = "/proc/thread-self/net/if_inet6"


class PodSockets:
    """Everything that must be made inside the pod's network namespace; keeps the namespace alive until closed."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            self.queue = nfqueue.Queue(QUEUE_NUMBER)
            undo.callback(self.queue.close)
            self.diag = SockDiag()
            undo.callback(self.diag.close)
            self.families = (4, 6) if os.path.exists(_IF_INET6) else (4,)
            self.raw = {}
            for family in self.families:
                self.raw[family] = undo.enter_context(_raw_socket(family))
            self._snmp = os.open(_SNMP, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, self._snmp)
            self.close = undo.pop_all().close

    def passive_opens(self) -> int:
        """How many connections were accepted in the namespace so far."""
        names, values = (
            line.split() for line in os.pread(self._snmp, 16384, 0).splitlines() if line.startswith(b"Tcp:")
        )
        return int(values[names.index(b"PassiveOpens")])


def _raw_socket(family: int) -> socket.socket:
    # IPPROTO_RAW: we write the IP header too, and receive nothing.
    sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    return sock
