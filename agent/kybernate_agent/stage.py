"""One verb under way: its steps go into the journal before they are done, their seconds into the history.

    async with Stage(...) as stage:
        stage.step("freeze")        # journalled, timed until the next step
        await keeper.freeze()

Leaving the block settles the journal, whatever happened: a step that fails has put everything back before its error
arrives here. AbortedError says that nothing went wrong but the verb was not done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import Any

from kybernate.errors import KybernateError, RefusedError
from kybernate_agent import clock
from kybernate_agent.instance import Record, Transition, Verb
from kybernate_agent.journal import Journal, JournalError

log = logging.getLogger(__name__)


class AbortedError(RefusedError):
    """{message}"""


class Stage:
    """Raises nothing of its own; errors of the block pass through."""

    def __init__(self, journal: Journal, record: Record, verb: Verb, reason: str) -> None:
        self.record = record
        self.verb = verb
        self.reason = reason
        self.phases: dict[str, float] = {}
        self.began = time.monotonic()
        self._journal = journal
        self._source = record.phase
        self._name = ""
        self._at = self.began

    def step(self, name: str, *, epoch: int | None = None, **detail: Any) -> None:
        """`name` is about to be done; the step before it is over. `epoch`: of the images, where not the record's."""
        self._close()
        self._name = name
        try:
            epoch = self.record.epoch if epoch is None else epoch
            self._journal.step(self.record.id, self.verb.value, name, epoch, **detail)
        except JournalError as error:
            # A full disk must not keep anybody from waking, nor from ending, which is what frees it: what lives is the
            # truth, with or without its row. So are the images that KEEP adds to, and others wait for its end.
            if self.verb not in (Verb.RESUME, Verb.LEAVE, Verb.END, Verb.KEEP):
                raise
            log.error("%s: %s", self.record.id, error)

    async def synced(self) -> None:
        """The step just written, and all before it, are known after a power cut too. Raises JournalError."""
        await self._journal.synced()

    def _close(self) -> None:
        now = time.monotonic()
        if self._name:
            self.phases[self._name] = round(self.phases.get(self._name, 0.0) + now - self._at, 4)
        self._at = now

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    async def __aenter__(self) -> Stage:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._close()
        outcome = "done" if error is None else "aborted" if isinstance(error, AbortedError) else "failed"
        message = self.reason if error is None else str(error) or type(error).__name__
        if isinstance(error, asyncio.CancelledError):
            message = "an end came first: the instance's, or the agent's"
        # A look that found work going on is no transition: an idle timer would fill the history with them.
        if outcome != "aborted":
            self.record.note(
                Transition(
                    at=clock.now(),
                    verb=self.verb.value,
                    source=self._source.value,
                    target=self.record.phase.value,
                    seconds=round(self.seconds, 4),
                    outcome=outcome,
                    message=message,
                    phases=self.phases,
                )
            )
        try:
            self._journal.settle(self.record)
        except JournalError as failure:
            log.error("%s: %s", self.record.id, failure)
        foreseen = error is None or isinstance(error, KybernateError | asyncio.CancelledError)
        level = logging.INFO if foreseen else logging.ERROR
        log.log(level, "%s: %s %s in %.3f s: %s", self.record.id, self.verb.value, outcome, self.seconds, message)
