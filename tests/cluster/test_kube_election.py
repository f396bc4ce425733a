"""One leads, never two: candidates at a real API server, cut off, killed, robbed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from kube_bed import KubeBed, open_kube_bed, until

from kybernate.kube.client import Client
from kybernate.kube.election import Election, LeadershipLostError, Lease, StuckLeaderError
from kybernate.kube.errors import ApiNotFoundError
from kybernate.kube.resource import LEASES
from kybernate.lab.cluster.apiserver import ApiServerBed

SHORT = (3, 2.0)
"""Lease and renewal in seconds, for tests that wait for their end."""
LONG = (15, 10.0)


class Candidate:
    """A candidate whose work notes when it begins and ends. `cleanup_seconds`: how long its work takes to end."""

    def __init__(
        self,
        client: Client,
        bed: KubeBed,
        name: str,
        log: list[str],
        *,
        times: tuple[int, float] = LONG,
        cleanup_seconds: float = 0.0,
    ) -> None:
        lease, renew = times
        self.election = Election(
            client, bed.namespace, "lease", name, lease_seconds=lease, renew_seconds=renew, retry_seconds=0.2
        )
        self.name, self.log, self.cleanup_seconds = name, log, cleanup_seconds
        self.task = asyncio.create_task(self.election.run(self._lead))

    async def _lead(self) -> None:
        self.log.append(f"{self.name} begins")
        assert self.election.is_leader
        try:
            await asyncio.Event().wait()
        finally:
            if self.cleanup_seconds:
                await asyncio.sleep(self.cleanup_seconds)
            self.log.append(f"{self.name} ends")

    async def end(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, LeadershipLostError, StuckLeaderError):
            await self.task


@pytest_asyncio.fixture
async def bed(apiserver: ApiServerBed) -> AsyncIterator[KubeBed]:
    async with open_kube_bed(apiserver) as bed:
        yield bed


async def lease_of(bed: KubeBed) -> Lease:
    return await bed.direct.get(LEASES, Lease, "lease", bed.namespace)


async def test_one_leads_and_the_next_follows_at_once_when_it_ends_well(bed: KubeBed) -> None:
    log: list[str] = []
    first = Candidate(bed.direct, bed, "a", log)
    await until(lambda: log == ["a begins"], "a leader")
    second = Candidate(bed.direct, bed, "b", log)
    await until(lambda: second.election.holder == first.election.identity, "the second's look")
    assert not second.election.is_leader
    await first.end()
    released = await lease_of(bed)
    assert released.spec.holder_identity in {"", second.election.identity}, "it was given back"
    await until(lambda: log == ["a begins", "a ends", "b begins"], "the next")
    lease = await lease_of(bed)
    assert (lease.spec.holder_identity, lease.spec.lease_transitions) == (second.election.identity, 1)
    await second.end()
    assert not second.election.is_leader


async def test_who_is_cut_off_stops_before_another_begins(bed: KubeBed) -> None:
    log: list[str] = []
    cut_off = Candidate(bed.client, bed, "a", log, times=SHORT, cleanup_seconds=0.3)
    await until(lambda: log == ["a begins"], "a leader")
    other = Candidate(bed.direct, bed, "b", log)
    await bed.proxy.refuse()
    await until(lambda: "b begins" in log, "the next")
    assert log == ["a begins", "a ends", "b begins"]
    with pytest.raises(LeadershipLostError):
        await cut_off.task
    await other.end()


async def test_whose_requests_hang_stops_before_another_begins(bed: KubeBed) -> None:
    log: list[str] = []
    slow = Candidate(bed.client, bed, "a", log, times=SHORT)
    await until(lambda: log == ["a begins"], "a leader")
    other = Candidate(bed.direct, bed, "b", log)
    bed.proxy.hang()
    await until(lambda: "b begins" in log, "the next")
    assert log == ["a begins", "a ends", "b begins"]
    with pytest.raises(LeadershipLostError):
        await slow.task
    await other.end()


async def test_a_short_trouble_is_outlived(bed: KubeBed) -> None:
    log: list[str] = []
    leader = Candidate(bed.client, bed, "a", log)
    await until(lambda: log == ["a begins"], "a leader")
    before = (await lease_of(bed)).spec.renew_time
    bed.proxy.answers(3, lambda seen: seen.method == "PUT", 500)
    refused = bed.proxy.count(lambda seen: seen.method == "PUT") + 4
    await until(lambda: bed.proxy.count(lambda seen: seen.method == "PUT") >= refused, "a renewal after the trouble")
    assert leader.election.is_leader
    async with asyncio.timeout(60):  # the proxy has seen it before the server has written it
        while (await lease_of(bed)).spec.renew_time == before:
            await asyncio.sleep(0.02)
    await leader.end()
    assert log == ["a begins", "a ends"]


async def test_a_killed_leader_is_followed_after_its_lease_has_run_out(bed: KubeBed) -> None:
    spec = {"holderIdentity": "killed", "leaseDurationSeconds": 1, "renewTime": "2020-01-01T00:00:00.000000Z"}
    await bed.direct.create(LEASES, {"metadata": {"name": "lease"}, "spec": spec}, bed.namespace)
    log: list[str] = []
    loop = asyncio.get_running_loop()
    began = loop.time()
    next_one = Candidate(bed.direct, bed, "b", log)
    await until(lambda: log == ["b begins"], "the next")
    assert loop.time() - began >= 1.0, "a time that another clock wrote proves nothing"
    await next_one.end()


@pytest.mark.parametrize("how", ["taken", "deleted"])
async def test_a_lease_that_is_no_longer_ours_ends_the_work(bed: KubeBed, how: str) -> None:
    log: list[str] = []
    leader = Candidate(bed.direct, bed, "a", log)
    await until(lambda: log == ["a begins"], "a leader")
    if how == "taken":
        patch = {"spec": {"holderIdentity": "thief"}}
        await bed.direct.merge_patch(LEASES, Lease, "lease", patch, bed.namespace)
    else:
        await bed.direct.delete(LEASES, "lease", bed.namespace)
    with pytest.raises(LeadershipLostError):
        await leader.task
    assert log == ["a begins", "a ends"]
    if how == "taken":
        assert (await lease_of(bed)).spec.holder_identity == "thief"
    else:
        with pytest.raises(ApiNotFoundError):
            await lease_of(bed)


async def test_a_lease_that_somebody_labelled_is_still_ours(bed: KubeBed) -> None:
    log: list[str] = []
    leader = Candidate(bed.direct, bed, "a", log)
    await until(lambda: log == ["a begins"], "a leader")
    await bed.direct.merge_patch(LEASES, Lease, "lease", {"metadata": {"labels": {"a": "b"}}}, bed.namespace)
    before = bed.direct.requests["update", "leases.coordination.k8s.io"]
    await until(lambda: bed.direct.requests["update", "leases.coordination.k8s.io"] >= before + 3, "renewals")
    assert leader.election.is_leader
    await leader.end()
    assert (await lease_of(bed)).metadata.labels == {"a": "b"}


async def test_work_that_does_not_end_is_said_and_the_lease_kept(bed: KubeBed) -> None:
    log: list[str] = []
    stuck = Candidate(bed.direct, bed, "a", log, times=(11, 10.0), cleanup_seconds=60.0)
    await until(lambda: log == ["a begins"], "a leader")
    stuck.task.cancel()
    with pytest.raises(StuckLeaderError):
        await stuck.task
    assert (await lease_of(bed)).spec.holder_identity == stuck.election.identity


async def test_what_the_work_raises_comes_out_and_the_lease_is_given_back(bed: KubeBed) -> None:
    async def lead() -> None:
        raise ZeroDivisionError

    election = Election(bed.direct, bed.namespace, "lease", "a")
    with pytest.raises(ZeroDivisionError):
        await election.run(lead)
    assert (await lease_of(bed)).spec.holder_identity == ""
