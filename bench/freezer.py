"""zeropod and its workload, built here: the shim, and `freezer`, the server that both sides put to sleep.

Both come by name and version through the Go module proxy, with the `go` of the PATH, into a cache outside of the tree.
`freezer -memory N` fills N MiB with random bytes, writes a time stamp each millisecond, and serves on port 8080:
`/set` takes a text, `/get` returns it. A reply with the text of before proves that the state is the old one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.harness import note
from kybernate.errors import DeadlineError, ExternalError
from kybernate.lab.images import Contents, Image, build, cache

VERSION = "v0.12.1"
PORT = 8080
_MODULE = "github.com/ctrox/zeropod"
_PROGRAMS = ("shim", "freezer")
_REQUEST_SECONDS = 30.0


class GoError(ExternalError):
    """zeropod {version} could not be built: {reason}. It needs Go >= 1.24 as `go` in the PATH, and once the network."""


class ReplyError(ExternalError):
    """The freezer answered what it should not: {reply}"""


class ReplyDeadlineError(DeadlineError):
    """The freezer at {address} did not answer within {seconds} s: {reason}"""


def programs() -> dict[str, Path]:
    """Paths of the shim and the freezer, built where they are missing (about 90 s). Raises GoError."""
    folder = cache() / "bench" / f"zeropod-{VERSION}"
    if not all((folder / name).exists() for name in _PROGRAMS):
        note(f"building zeropod {VERSION}, once")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
            _build(Path(making))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(Path(making, "bin"), folder)
    return {name: folder / name for name in _PROGRAMS}


def _build(making: Path) -> None:
    packages = [f"{_MODULE}/cmd/{name}" for name in _PROGRAMS]
    _go(making, "mod", "init", "zeropod.bench")
    _go(making, "get", *(f"{package}@{VERSION}" for package in packages))
    _go(making, "build", "-trimpath", "-buildvcs=false", "-o", f"{making}/bin/", *packages)


def _go(folder: Path, *words: str) -> None:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if not go:
        raise GoError(version=VERSION, reason="there is no `go`")
    # GOTOOLCHAIN=local: the Go of the machine, none that it would fetch by itself.
    env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    try:
        subprocess.run([go, *words], cwd=folder, env=env, capture_output=True, check=True, timeout=900)
    except subprocess.CalledProcessError as error:
        raise GoError(version=VERSION, reason=error.stderr.decode(errors="replace")[-500:].strip()) from error
    except subprocess.TimeoutExpired as error:
        raise GoError(version=VERSION, reason=f"`go {words[0]}` took more than {error.timeout} s") from error


def image() -> Image:
    """The freezer as an image, with /bin/true for those who measure nothing but a start."""
    contents = Contents(["busybox-static"], {"freezer": programs()["freezer"]}, {"usr/bin/true": "busybox"})
    return build("localhost/kybernate-freezer:1", contents, {"Entrypoint": ["/freezer"]})


def ask(
    address: str, seconds: float = _REQUEST_SECONDS, *, retry: Callable[[], bool] = lambda: False
) -> tuple[float, str]:
    """One `GET /get` on a new connection: milliseconds from connect to the last byte of the reply, and the text in it.

    `retry` says whether to go on when the connection is refused (a raw restore has nobody who holds the client).
    Raises ReplyDeadlineError, ReplyError.
    """
    began = time.perf_counter()
    limit = time.monotonic() + seconds
    while True:
        try:
            body = _http(address, b"GET /get HTTP/1.1\r\nHost: freezer\r\n\r\n", limit)
            return (time.perf_counter() - began) * 1000, str(json.loads(body)["data"])
        except OSError as error:
            if not (isinstance(error, ConnectionRefusedError) and retry()) or time.monotonic() > limit:
                raise ReplyDeadlineError(address=address, seconds=seconds, reason=error) from error
            time.sleep(0.001)


def remember(address: str, text: str, seconds: float = 60.0) -> None:
    """Wait until the freezer serves, and give it `text` to keep. Raises ReplyDeadlineError, ReplyError."""
    body = json.dumps({"data": text}).encode()
    head = f"POST /set HTTP/1.1\r\nHost: freezer\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    limit = time.monotonic() + seconds
    while True:
        try:
            _http(address, head + body, limit)
            return
        except OSError as error:
            if time.monotonic() > limit:
                raise ReplyDeadlineError(address=address, seconds=seconds, reason=error) from error
            time.sleep(0.02)


def woken(address: str, text: str, *, retry: Callable[[], bool] = lambda: False) -> float:
    """Milliseconds until a sleeper's full reply. Raises ReplyError where its state is not the one before."""
    spent, kept = ask(address, retry=retry)
    if kept != text:
        raise ReplyError(reply=f"the text {kept!r}, not {text!r}: it began anew")
    return spent


def _http(address: str, request: bytes, limit: float) -> bytes:
    """Send one request, and read until the body is whole. Raises OSError, ReplyError."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(max(0.001, limit - time.monotonic()))
        client.connect((address, PORT))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(request)
        received = b""
        while True:
            client.settimeout(max(0.001, limit - time.monotonic()))
            piece = client.recv(65536)
            received += piece
            head, ended, body = received.partition(b"\r\n\r\n")
            if ended and len(body) >= _length(head):
                return body
            if not piece:
                raise ConnectionResetError(f"closed after {len(received)} bytes")


def _length(head: bytes) -> int:
    status, *fields = head.split(b"\r\n")
    if b" 200 " not in status:
        raise ReplyError(reply=status.decode(errors="replace"))
    for field in fields:
        name, _, value = field.partition(b":")
        if name.lower() == b"content-length":
            with contextlib.suppress(ValueError):
                return int(value)
    raise ReplyError(reply="no Content-Length")
