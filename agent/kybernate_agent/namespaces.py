"""A look into a namespace of a container: in a thread that enters it and ends, so nothing of ours stays there.

Source: setns(2); proc(5), /proc/net/fib_trie and if_inet6.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

NETWORK, UTS = 0x40000000, 0x04000000
_HERE = Path("/proc/thread-self/net")
_GLOBAL = "00"
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def inside(path: str, kind: int, look: Callable[[], T]) -> T:
    """What `look` returns in the namespace at `path`. Blocks. Raises OSError, and what `look` raises."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, kind):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
            finally:
                os.close(fd)
            answers.append(look())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter, name="namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]


def addresses() -> tuple[str, ...]:
    """The addresses of the network namespace that this thread is in, without loopback's and link-local ones."""
    found: set[str] = set()
    last = ""
    for line in (_HERE / "fib_trie").read_text().splitlines():
        words = line.split()
        if "|--" in words:
            last = words[-1]
        elif words[-1:] == ["LOCAL"] and not ipaddress.ip_address(last).is_loopback:
            found.add(last)
    if (_HERE / "if_inet6").exists():
        for line in (_HERE / "if_inet6").read_text().splitlines():
            text, _, _, scope, *_ = line.split()
            if scope == _GLOBAL:
                found.add(str(ipaddress.ip_address(bytes.fromhex(text))))
    return tuple(sorted(found))
