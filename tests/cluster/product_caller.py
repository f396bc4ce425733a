"""A client that calls an application all the time, as clients do, and what it was answered."""

from __future__ import annotations

import threading

from agent_bed import Answer, ask, eventually
from product_bed import LIMIT


class Caller:
    """Calls again and again until the block ends, `pause` seconds after each answer.

    As clients do, it tries again where it was refused: nobody listens while a container is started anew, nor before a
    first answer, which `refused` does not count. Any other failure ends it and is what the test has to look at.
    """

    def __init__(self, ip: str, pause: float = 0.2, port: int = 8080) -> None:
        self._ip, self._pause, self._port = ip, pause, port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: list[Answer] = []
        self.refused = 0
        self.failure: Exception | None = None

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(ask(self._ip, self._port, seconds=90))
            except ConnectionRefusedError:
                self.refused += bool(self.answers)
            except (OSError, ValueError) as error:
                self.failure = error
                return
            self._stop.wait(self._pause)

    def goes_on(self, more: int = 3) -> None:
        """Once it has had so many more answers."""
        wanted = len(self.answers) + more
        eventually(
            lambda: len(self.answers) >= wanted or self.failure,
            LIMIT,
            f"{more} more answers, {len(self.answers)} so far",
        )
        self.check()

    def check(self) -> None:
        """Every call was answered, in order, by one and the same process."""
        assert self.failure is None, f"after {len(self.answers)} answers: {self.failure!r}"
        assert [one.count for one in self.answers] == list(
            range(self.answers[0].count, self.answers[0].count + len(self.answers))
        )
        assert len({one.born for one in self.answers}) == 1
