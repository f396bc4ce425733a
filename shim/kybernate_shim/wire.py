"""The small protocol: one JSON object a line, one request a connection, one reply.

The hook asks the keeper and the agent with it, the post-dump script asks the agent, the agent asks the keeper. The C
module _socket is used as it is: the socket module would cost each hook call 4 ms and each keeper a megabyte.
"""

from __future__ import annotations

import _socket
import json
import os
import time

TYPE_CHECKING = False  # the typing module would cost each hook call 4 ms
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

LINE_LIMIT_BYTES = 1 << 20


class Unreachable(Exception):
    """Nobody listens at the socket, or the listener went away before it replied."""


class NoAnswer(Exception):
    """The listener did not reply in time."""


def address(path: str) -> tuple[str, int]:
    """A name of `path` that fits into 107 bytes, through its open folder; close the descriptor after use."""
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{fd}/{name}", fd


def listen(path: str) -> _socket.socket:
    """A listening socket, mode 0600, in a folder of mode 0700."""
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    name, fd = address(path)
    try:
        server.bind(name)
        os.chmod(name, 0o600)
    finally:
        os.close(fd)
    server.listen(64)
    return server


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Raises ValueError when it is no object."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("an object is needed")
    return message


def ask(path: str, request: Message, seconds: float) -> Message:
    """Send `request`, return the reply. Raises Unreachable, or NoAnswer after `seconds`."""
    end = time.monotonic() + seconds
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        _connect(link, path, seconds)
        link.sendall(encode(request))
        answer = b""
        while not answer.endswith(b"\n"):
            link.settimeout(max(end - time.monotonic(), 0.001))
            part = link.recv(65536)
            if not part or len(answer) > LINE_LIMIT_BYTES:
                raise Unreachable(f"{path}: the connection ended before a reply to {request['verb']}")
            answer += part
        return decode(answer)
    except TimeoutError:
        raise NoAnswer(f"{path}: no reply to {request['verb']} within {seconds:.0f} s") from None
    except (OSError, ValueError) as error:
        raise Unreachable(f"{path}: {error}") from None
    finally:
        link.close()


def _connect(link: _socket.socket, path: str, seconds: float) -> None:
    name, fd = address(path)
    try:
        link.settimeout(seconds)
        link.connect(name)
    finally:
        os.close(fd)


def ask_patiently(path: str, request: Message, seconds: float) -> Message:
    """As `ask`, but wait for a listener to appear, too: an agent that restarts is back within seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            return ask(path, request, max(end - time.monotonic(), 0.001))
        except Unreachable:
            if time.monotonic() >= end:
                raise
            time.sleep(0.1)
