"""The keeper's event loop: one thread, one epoll, no polling.

Verbs are generators. One runs at a time; it yields a `Wait` for what it needs (a child's end, an event on a
descriptor, a moment) and is sent True when that came and False when the moment passed first. While it waits, the loop
still answers `state` and `kill`, so a kill can throw `Preempted` into a verb that hangs.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque

from kybernate_shim import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Generator
    from typing import NoReturn

    Step = Generator["Wait", bool, wire.Message]

REQUEST_LIMIT_BYTES = 1 << 20
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM)


class Refused(Exception):
    """A verb was not done; `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str, **more: object) -> None:
        super().__init__(message)
        self.code, self.more = code, more

    def reply(self, state: str) -> wire.Message:
        return {"ok": False, "error": self.code, "message": str(self), "state": state, **self.more}


class Preempted(BaseException):
    """Thrown into the verb in flight: the container is being killed."""


class Wait:
    """What a verb waits for: the end of `child`, priority data on `fd`, or the moment `until` (monotonic seconds)."""

    def __init__(self, until: float, child: int = 0, fd: int = -1) -> None:
        self.until, self.child, self.fd = until, child, fd


class Client:
    """One connection: a request comes in, a reply goes out."""

    def __init__(self, link: _socket.socket) -> None:
        self.link, self.received = link, b""

    def reply(self, message: wire.Message) -> None:
        try:
            self.link.settimeout(1)
            self.link.sendall(wire.encode(message))
        except OSError:  # whoever asked has gone; what was done stays done
            pass
        self.link.close()


class Loop:
    """Feeds requests, signals and ends of children to its owner, and drives the one verb in flight."""

    def __init__(
        self,
        on_request: Callable[[wire.Message, Client], None],
        on_exit: Callable[[int, int], None],
        on_signal: Callable[[int], None],
    ) -> None:
        self.on_request, self.on_exit, self.on_signal = on_request, on_exit, on_signal
        self.epoll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.queue: deque[tuple[Step, Callable[[wire.Message], None]]] = deque()
        self.step: Step | None = None
        self.done: Callable[[wire.Message], None] = lambda message: None
        self.wait = Wait(0)
        self.exits: dict[int, int] = {}
        self.state: Callable[[], str] = lambda: ""
        self.server: _socket.socket | None = None
        self.signals = self._catch_signals()

    def _catch_signals(self) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGCHLD, *FORWARDED):
            signal.signal(number, lambda *_: None)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.epoll.register(reader, select.EPOLLIN)
        return reader

    def listen(self, path: str) -> None:
        self.server = wire.listen(path)
        self.epoll.register(self.server.fileno(), select.EPOLLIN)

    def begin(self, step: Step, done: Callable[[wire.Message], None]) -> None:
        """Run `step` after those that wait already; `done` gets its reply."""
        self.queue.append((step, done))

    def preempt(self) -> None:
        """End the verb in flight, and refuse those behind it."""
        waiting, self.queue = list(self.queue), deque()
        if self.step is not None:
            step, self.step = self.step, None
            try:  # noqa: SIM105
                step.throw(Preempted())
            except (Preempted, StopIteration):
                pass  # it has let go
            self._finish(Refused("ended", "the container ended first").reply(self.state()))
        for step, done in waiting:
            step.close()
            done(Refused("ended", "the container ended first").reply(self.state()))

    def forever(self) -> NoReturn:
        self._reap()
        while True:
            while self.step is None and self.queue:
                self.step, self.done = self.queue.popleft()
                self._resume(None)
            timeout = None if self.step is None else max(self.wait.until - time.monotonic(), 0)
            ready = self._dispatch(self.epoll.poll(timeout))
            if self.step is None:
                continue
            if ready or self.wait.child in self.exits:
                self._resume(True)
            elif time.monotonic() >= self.wait.until:
                self._resume(False)

    def _dispatch(self, events: list[tuple[int, int]]) -> bool:
        ready = False
        for fd, _ in events:
            if fd == self.signals:
                self._signalled()
            elif self.server is not None and fd == self.server.fileno():
                self._accept()
            elif fd in self.clients:
                self._receive(fd)
            elif self.step is not None and fd == self.wait.fd:
                ready = True
        return ready

    def _resume(self, value: bool | None) -> None:
        """Send `value` into the verb until it waits for something that has not come yet."""
        step = self.step
        if step is None:
            return
        if self.wait.fd >= 0 and value is not None:
            self.epoll.unregister(self.wait.fd)
        try:
            self.wait = next(step) if value is None else step.send(value)
        except StopIteration as end:
            self._finish(end.value)
        except Refused as refusal:
            self._finish(refusal.reply(self.state()))
        else:
            if self.wait.fd >= 0:
                self.epoll.register(self.wait.fd, select.EPOLLPRI)

    def _finish(self, message: wire.Message) -> None:
        self.step, self.wait, done = None, Wait(0), self.done
        self.exits.clear()
        done(message)

    def _signalled(self) -> None:
        for number in os.read(self.signals, 512):
            if number == signal.SIGCHLD:
                self._reap()
            else:
                self.on_signal(number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.step is not None:
                self.exits[pid] = status
            self.on_exit(pid, status)

    def _accept(self) -> None:
        if self.server is None:
            return
        fd, _ = self.server._accept()  # type: ignore[attr-defined]
        link = type(self.server)(fileno=fd)
        link.setblocking(False)
        self.clients[fd] = Client(link)
        self.epoll.register(fd, select.EPOLLIN)

    def _receive(self, fd: int) -> None:
        client = self.clients[fd]
        try:
            part = client.link.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        client.received += part
        whole = client.received.endswith(b"\n")
        if part and not whole and len(client.received) < REQUEST_LIMIT_BYTES:
            return
        del self.clients[fd]
        self.epoll.unregister(fd)
        if not whole:
            client.link.close()
            return
        try:
            request = wire.decode(client.received)
            request["verb"]
        except (KeyError, ValueError) as error:
            client.reply(Refused("bad_request", f"not a request: {error}").reply(self.state()))
            return
        self.on_request(request, client)
