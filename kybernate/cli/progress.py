"""A word on stderr while something takes longer than a second."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from kybernate.cli.output import span

_EACH_SECONDS = 1.0
_LOG_EACH_SECONDS = 15.0


class Progress:
    """Says `what` and for how long, from the first second on until the block is left.

    On a terminal one line is rewritten each second and taken away at the end; elsewhere (a log) a line is written after
    the first second and then every 15.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._terminal = sys.stderr.isatty()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._say, daemon=True)

    def _say(self) -> None:
        began, wait = time.monotonic(), _EACH_SECONDS
        while not self._over.wait(wait):
            line = f"{self._what} ... {span(time.monotonic() - began)}"
            if self._terminal:
                print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            else:
                print(line, file=sys.stderr, flush=True)
                wait = _LOG_EACH_SECONDS
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
