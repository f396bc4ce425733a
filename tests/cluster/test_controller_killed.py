"""The controller dies: after every single write, by kill -9, beside another that waits; it goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from controller_bed import LIMIT_SECONDS, SYSTEM, Stage, controller_account, open_stage, until
from kybernate_controller import known, reconcile
from kybernate_controller.controller import Controller

from kybernate.kube.client import Client
from kybernate.kube.connection import Request
from kybernate.kube.credentials import Credentials, load_credentials
from kybernate.kube.events import Recorder
from kybernate.kube.resource import LEASES
from kybernate.lab.cluster.apiserver import ApiServerBed, free_ports

ELECTION = ("--lease-seconds=3", "--renew-seconds=2", "--retry-seconds=0.3")


@pytest_asyncio.fixture
async def stage(apiserver: ApiServerBed, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(known, "BELIEVED_SECONDS", 0.5)
    async with open_stage(apiserver) as stage:
        yield stage


class MortalClient(Client):
    """Its first write is its last: it is done, and nobody hears of the answer."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(credentials)
        self.died = asyncio.Event()

    async def request(self, call: Request, *, deadline_seconds: float | None = None) -> bytes:
        writes = call.method != "GET" and call.verb != "try"
        if writes and self.died.is_set():
            await asyncio.Event().wait()
        answer = await super().request(call, deadline_seconds=deadline_seconds)
        if writes:
            self.died.set()
            await asyncio.Event().wait()
        return answer


async def one_life(credentials: Credentials) -> None:
    """A controller from its start to its first write, whenever there is one."""
    async with (
        MortalClient(credentials) as client,
        Client(credentials) as other,
        Recorder(other, "test") as recorder,
    ):
        controller = Controller(client, recorder, workers=2)
        async with controller.opened():
            leading = asyncio.create_task(controller.lead())
            try:
                await client.died.wait()
            finally:
                leading.cancel()
                await asyncio.wait({leading})


async def live_until(bed: ApiServerBed, reached: Any) -> int:
    """Lives one after the other until `reached` is; how many there were."""
    lives = 0
    credentials = await load_credentials(controller_account(bed))

    async def lives_for_ever() -> None:
        nonlocal lives
        while True:
            await one_life(credentials)
            lives += 1

    living = asyncio.create_task(lives_for_ever())
    try:
        waiting = asyncio.ensure_future(reached)
        await asyncio.wait({living, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            living.result()
        await waiting
    finally:
        living.cancel()
        await asyncio.wait({living})
    return lives


async def test_killed_after_every_write_it_comes_to_the_same_end(
    apiserver: ApiServerBed, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "AT_ONCE", 1)
    node = await stage.node("n1")
    await stage.workload("chat", replicas=2)
    assert await live_until(apiserver, stage.until_ready("chat", 2, awake=2)) >= 5
    stage.tiers["chat-0"] = "NVME"
    await live_until(apiserver, stage.until_ready("chat", 2, awake=1, parked=1))
    await stage.evict("chat-0")

    async def came_back() -> bool:
        spec = (await stage.instances())["chat-0"]["spec"]
        return bool(spec["epoch"] == 2 and spec["nodeName"] == node)

    await live_until(apiserver, until(came_back, "the evicted one is back on its node"))
    await live_until(apiserver, stage.until_ready("chat", 2, awake=1, parked=1))
    await stage.workload("chat", replicas=2, image="localhost/chat:2", rollout={"sleeping": "Now"})
    await live_until(apiserver, stage.until_ready("chat", 2, awake=2, updatedReplicas=2))
    await stage.scale("chat", 1)
    await live_until(apiserver, stage.until_ready("chat", 1, awake=1))
    assert set(await stage.pods()) == set(await stage.instances()) == {"chat-0"}
    for name, uids in stage.uids.items():
        assert len(uids) == len(set(uids)) <= 3, f"{name} ran in {uids}"


class Process:
    """`python -m kybernate_controller` as it is deployed."""

    def __init__(self, bed: ApiServerBed, identity: str) -> None:
        self.identity = identity
        self.log = bed.folder / f"controller-{identity}.log"
        self.port = free_ports(1)[0]
        self._words = (
            "-m", "kybernate_controller", "--kubeconfig", str(controller_account(bed)), "--identity", identity,
            f"--listen=127.0.0.1:{self.port}", *ELECTION,
        )  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "setpriv", "--pdeathsig", "KILL", sys.executable, *self._words, stdin=asyncio.subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    async def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        async with asyncio.timeout(LIMIT_SECONDS):
            return await self._process.wait()

    async def ask(self, path: str) -> str:
        """The answer to GET; empty where there is none."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return ""
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        async with asyncio.timeout(LIMIT_SECONDS):
            answer = (await reader.read()).decode()
        writer.close()
        return answer


@contextlib.asynccontextmanager
async def processes(bed: ApiServerBed, *identities: str) -> AsyncIterator[dict[str, Process]]:
    running = {identity: Process(bed, identity) for identity in identities}
    try:
        for process in running.values():
            await process.start()
        yield running
    finally:
        for process in running.values():
            await process.end(signal.SIGKILL)


async def leader(stage: Stage) -> str:
    """Who holds the Lease; empty for nobody."""
    found = await stage.client.list(LEASES, dict[str, Any], SYSTEM)
    holder = next((lease["spec"].get("holderIdentity") or "" for lease in found.items), "")
    return str(holder).rpartition("_")[0]


async def test_two_controllers_one_is_killed_the_other_goes_on(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    async with processes(apiserver, "one", "two") as running:
        await stage.workload("chat", replicas=2)
        await stage.until_ready("chat", 2, awake=2)
        first = await leader(stage)
        (other,) = set(running) - {first}
        for path, says in (("/healthz", "200 OK"), ("/readyz", "200 OK")):
            for process in running.values():

                async def answers(process: Process = process, path: str = path, says: str = says) -> bool:
                    return says in await process.ask(path)

                await until(answers, f"{process.identity} answers {path}")
        assert "kybernate_controller_leader 1\n" in await running[first].ask("/metrics")
        metrics = await running[other].ask("/metrics")
        assert "kybernate_controller_leader 0\n" in metrics
        assert "kybernate_controller_looks_total 0\n" in metrics
        assert 'kybernate_controller_instances{tier="awake"} 2\n' in metrics
        assert 'kybernate_controller_watch_broken{resource="gpucheckpoints"} 0\n' in metrics
        await stage.workload("chat", replicas=2, image="localhost/chat:2")
        await running[first].end(signal.SIGKILL)
        await stage.until_ready("chat", 2, awake=2, updatedReplicas=2)
        assert await leader(stage) == other
        await stage.scale("chat", 1)
        await stage.until_ready("chat", 1, awake=1)
        assert all(len(uids) <= 2 for uids in stage.uids.values()), stage.uids


async def test_told_to_end_it_gives_the_lease_back(apiserver: ApiServerBed, stage: Stage) -> None:
    await stage.node("n1")
    async with processes(apiserver, "alone") as running:
        await stage.workload("chat")
        await stage.until_ready("chat", 1, awake=1)
        assert await running["alone"].end(signal.SIGTERM) == 0
        assert await leader(stage) == ""
        log = running["alone"].log.read_text()
        assert "ended" in log
        assert "Traceback" not in log


def test_a_kubeconfig_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kybernate_controller", "--kubeconfig", str(tmp_path / "none"), "--listen="],
        capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("kybernate controller: ")
    assert "Traceback" not in done.stderr
