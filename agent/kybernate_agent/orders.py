"""Who waits for an instance: a person for an order's end, callers for it to be awake."""

from __future__ import annotations

import asyncio

from kybernate.errors import KybernateError, RefusedError
from kybernate_agent import clock
from kybernate_agent.instance import Order, Verb


class Orders:
    """The one order that a person has given and that is not yet carried out."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._done: asyncio.Future[None] | None = None
        self.current: Order | None = None

    def give(self, verb: Verb) -> asyncio.Future[None]:
        """Takes the place of one before it. The result is set, or what the verb raised, when it is over."""
        self.answer(RefusedError(f"{self._instance}: another order came"))
        self.current = Order(verb, clock.now())
        self._done = asyncio.get_running_loop().create_future()
        return self._done

    def answer(self, error: BaseException | None = None) -> None:
        """The order, if there is one, is over."""
        done, self._done, self.current = self._done, None, None
        if done is None or done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
            done.exception()  # an order that nobody waits for must not be reported as never retrieved


class Callers:
    """Those who need the instance awake and wait for it: execs, signals, debug containers."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def any(self) -> bool:
        return bool(self._waiting)

    async def wait(self, seconds: float) -> None:
        """Raises TimeoutError, or the error given to `fail`."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            async with asyncio.timeout(seconds):
                await waiting
        finally:
            self._waiting.discard(waiting)

    def awake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def fail(self, error: KybernateError) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(error)
