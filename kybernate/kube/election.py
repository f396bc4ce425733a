"""Who of several acts: one holds the Lease, the others wait until it has not been renewed for as long as it promised.

The leader:     t                     t + renew                      t + lease
                ├─ a renewal was begun ┤ and none has succeeded since: │
                │  it leads            │ it stops leading and is       │ another may take the Lease
                │                      │ cancelled, all of it          │

Never two: a leader counts from *before* its last successful renewal was sent, a follower from *after* it has seen a
change, each on its own clock that goes on while a machine sleeps (CLOCK_BOOTTIME); wall clocks are for people. The time
between `renew_seconds` and `lease_seconds` is what the leader's work has to end in. Work that does not end then raises
StuckLeaderError, at which the process must end.

A Lease is written whole, with the resourceVersion that was read: of two who take it one gets a conflict. An answer that
did not come is no answer: the next look tells whether the write happened, for identities are used by one process only
(a random part is added). Whoever deletes the Lease of a living leader may get a second one, for `retry_seconds`.

    waiting ──free, ended by its holder, or silent for lease_seconds; and our write was the one──> leading
    leading ──renewed every retry_seconds──> leading
    leading ──work ended, or run was cancelled──> the Lease is given back: the next one need not wait
    leading ──not renewed for renew_seconds, or the Lease is another's or gone──> work cancelled, LeadershipLostError
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from kybernate.api.objects import Metadata, Object
from kybernate.errors import InvalidError, RefusedError
from kybernate.kube.client import Client
from kybernate.kube.errors import AlreadyExistsError, ApiError, ApiNotFoundError, ConflictError
from kybernate.kube.resource import LEASES

log = logging.getLogger(__name__)


class LeadershipLostError(RefusedError):
    """{lease}: the Lease is no longer ours ({problem}). Another process leads, or will; begin anew to stand again."""


class StuckLeaderError(RefusedError):
    """{lease}: what was done as leader did not stop within {seconds:g} s after the Lease was lost. End this process."""


class TimingError(InvalidError):
    """{lease}: renewing ({renew:g} s) must give up before the Lease ends ({lease_seconds} s), and try more than once
    before that (every {retry:g} s). Choose other times."""


class LeaseSpec(Object):
    """coordination.k8s.io/v1; times as RFC 3339 with microseconds, for people only."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(Object):
    """Who leads, for how long without a word."""

    metadata: Metadata
    spec: LeaseSpec = msgspec.field(default_factory=LeaseSpec)


@dataclass(frozen=True)
class Observed:
    """A state of the Lease, and when on our clock it was first seen."""

    lease: Lease
    at: float

    def free_for(self, identity: str, now: float) -> bool:
        """Whether `identity` may take it: nobody's, its own, or silent for as long as its holder promised to speak."""
        spec = self.lease.spec
        if not spec.holder_identity or spec.holder_identity == identity:
            return True
        return now - self.at >= (spec.lease_duration_seconds or 0)


def boot_seconds() -> float:
    """Seconds on a clock that nobody sets and that counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Election:
    """One candidate for the Lease `namespace`/`name`. `run` once."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        identity: str,
        *,
        lease_seconds: int = 15,
        renew_seconds: float = 10.0,
        retry_seconds: float = 2.0,
        clock: Callable[[], float] = boot_seconds,
    ) -> None:
        self.identity = f"{identity}_{uuid.uuid4().hex[:8]}"
        self._client, self._namespace, self._name = client, namespace, name
        self._lease, self._renew, self._retry = lease_seconds, renew_seconds, retry_seconds
        self._clock = clock
        self._seen: Observed | None = None
        self._leads_until = 0.0
        self._titled = f"{namespace}/{name}"
        if not 0 < retry_seconds < renew_seconds < lease_seconds:
            raise TimingError(lease=self._titled, renew=renew_seconds, lease_seconds=lease_seconds, retry=retry_seconds)

    @property
    def is_leader(self) -> bool:
        """Whether nobody else can lead at this moment. Ask right before what only a leader may do."""
        return self._clock() < self._leads_until

    @property
    def holder(self) -> str:
        """Who held the Lease when it was last seen; empty for nobody."""
        return (self._seen.lease.spec.holder_identity or "") if self._seen else ""

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Wait for the Lease, then run `lead` until it ends, which ends this; give the Lease back.

        Raises LeadershipLostError after `lead` was cancelled, StuckLeaderError where that did not end, and whatever
        `lead` raises.
        """
        await self._acquire()
        log.info("%s: %s leads", self._titled, self.identity)
        work = asyncio.ensure_future(lead())
        renewing = asyncio.create_task(self._keep(), name=f"lease {self._titled}")
        try:
            await asyncio.wait({work, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            try:
                await self._stop(work)
            finally:
                renewing.cancel()
                await asyncio.wait({renewing})
                if self.is_leader and work.done():
                    await self._release()
                self._leads_until = 0.0
        if not work.cancelled():
            work.result()
        if not renewing.cancelled():
            renewing.result()

    async def _acquire(self) -> None:
        said = ""
        while True:
            try:
                if await self._try_to_take() and self.is_leader:
                    return
                said = ""
            except ApiError as error:
                if str(error) != said:
                    log.warning("%s: the Lease cannot be had now: %s", self._titled, error)
                said = str(error)
            await asyncio.sleep(self._retry * random.uniform(1.0, 1.2))  # noqa: S311  it spreads load

    async def _try_to_take(self) -> bool:
        """One look at the Lease, and one write where it is free. Raises ApiError."""
        try:
            lease = await self._client.get(
                LEASES, Lease, self._name, self._namespace, deadline_seconds=self._renew - self._retry
            )
        except ApiNotFoundError:
            return await self._write(Lease(metadata=Metadata(name=self._name, namespace=self._namespace)))
        if self._seen is None or self._seen.lease.metadata.resource_version != lease.metadata.resource_version:
            self._seen = Observed(lease, self._clock())
        if not self._seen.free_for(self.identity, self._clock()):
            return False
        return await self._write(lease)

    async def _keep(self) -> None:
        """Renew, for ever. Raises LeadershipLostError."""
        problem = "no renewal succeeded"
        while self.is_leader:
            await asyncio.sleep(min(self._retry, max(0.0, self._leads_until - self._clock())))
            left = self._leads_until - self._clock()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(left):
                    if not await self._renew_once():
                        problem = "another holds it, or it was deleted"
                        break
            except (ApiError, TimeoutError) as error:
                problem = str(error) or "no renewal was answered in time"
                log.warning("%s: the Lease was not renewed: %s", self._titled, problem)
        self._leads_until = 0.0
        raise LeadershipLostError(lease=self._titled, problem=problem.rstrip("."))

    async def _renew_once(self) -> bool:
        """False: it is no longer ours. Raises ApiError where that is not known."""
        lease = self._seen.lease if self._seen else None
        if lease is not None and await self._write(lease):
            return True
        try:
            lease = await self._client.get(LEASES, Lease, self._name, self._namespace)
        except ApiNotFoundError:
            return False
        return lease.spec.holder_identity == self.identity and await self._write(lease)

    async def _write(self, lease: Lease) -> bool:
        """Make the Lease ours, or ours for longer; False where somebody was faster. Raises ApiError."""
        began, now = self._clock(), _now()
        old = lease.spec
        mine = old.holder_identity == self.identity
        lease = Lease(
            metadata=lease.metadata,
            spec=LeaseSpec(
                holder_identity=self.identity,
                lease_duration_seconds=self._lease,
                acquire_time=old.acquire_time if mine else now,
                renew_time=now,
                lease_transitions=(old.lease_transitions or 0) + (0 if mine or old.holder_identity is None else 1),
            ),
        )
        try:
            if lease.metadata.resource_version:
                written = await self._client.replace(LEASES, lease)
            else:
                written = await self._client.create(LEASES, lease, self._namespace)
        except (ConflictError, AlreadyExistsError, ApiNotFoundError):
            return False
        self._seen = Observed(written, began)
        self._leads_until = began + self._renew
        return True

    async def _stop(self, work: asyncio.Future[None]) -> None:
        """Cancel the work and wait for its end, as long as nobody else can lead. Raises StuckLeaderError."""
        work.cancel()
        seconds = self._lease - self._renew
        _, running = await asyncio.wait({work}, timeout=seconds)
        if running:
            raise StuckLeaderError(lease=self._titled, seconds=seconds)

    async def _release(self) -> None:
        if self._seen is None:
            return
        spec = msgspec.structs.replace(self._seen.lease.spec, holder_identity="", lease_duration_seconds=1)
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(self._renew / 2):
                await self._client.replace(LEASES, Lease(metadata=self._seen.lease.metadata, spec=spec))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
