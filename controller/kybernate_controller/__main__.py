"""`python -m kybernate_controller [--kubeconfig FILE]`: run the controller until SIGTERM or SIGINT.

It may be started any number of times: one leads, the others keep their caches filled and wait. Ending it changes
nothing for the workloads; nodes go on suspending and waking without it. On SIGTERM the Lease is given back, so that
the next one need not wait.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys

from kybernate.errors import KybernateError
from kybernate.kube.client import Client
from kybernate.kube.credentials import load_credentials
from kybernate.kube.election import Election, LeadershipLostError
from kybernate.kube.events import Recorder
from kybernate_controller import config
from kybernate_controller.config import Config
from kybernate_controller.controller import Controller
from kybernate_controller.copies import Copies
from kybernate_controller.health import Health

log = logging.getLogger("kybernate_controller")

COMPONENT = "kybernate-controller"


class Candidate:
    """Stands for the Lease again and again, and leads while it has it."""

    def __init__(self, client: Client, controller: Controller, copies: Copies, given: Config) -> None:
        self._client, self._controller, self._copies, self._given = client, controller, copies, given
        self._election: Election | None = None
        self._alone = False

    def leads(self) -> bool:
        return self._alone or (self._election is not None and self._election.is_leader)

    def may_write(self) -> None:
        """Raises LeadershipLostError: another may be writing."""
        if not self.leads():
            lease = f"{self._given.namespace}/{self._given.lease_name}"
            raise LeadershipLostError(lease=lease, problem="it was not renewed in time")

    async def run(self) -> None:
        """Until cancelled. Raises StuckLeaderError."""
        given = self._given
        if not given.elect:
            self._alone = True
            await self._lead()
        while True:
            self._election = Election(
                self._client,
                given.namespace,
                given.lease_name,
                given.identity,
                lease_seconds=given.lease_seconds,
                renew_seconds=given.renew_seconds,
                retry_seconds=given.retry_seconds,
            )
            try:
                await self._election.run(self._lead)
            except LeadershipLostError as error:
                log.warning("%s", error)

    async def _lead(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._controller.lead(self.may_write), name="workloads")
            group.create_task(self._copies.lead(self.may_write), name="copies")


async def serve(given: Config) -> None:
    """Run until told to end. Raises KybernateErrors that make a start impossible."""
    # What a cache holds lives long: looking through all of it for cycles costs more than they ever could.
    gc.set_threshold(50_000, 50, 100)
    credentials = await load_credentials(given.kubeconfig, context=given.context)
    async with Client(credentials, program=COMPONENT) as client, Recorder(client, COMPONENT) as recorder:
        controller = Controller(client, recorder, workers=given.workers)
        copies = Copies(client, recorder)
        candidate = Candidate(client, controller, copies, given)
        health = Health(controller, copies, client, recorder, candidate.leads)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        log.info("asks %s", credentials.server)
        async with health.served(given.listen), controller.opened(), copies.opened():
            leading = asyncio.create_task(candidate.run(), name="candidate")
            ended = asyncio.create_task(stop.wait(), name="signal")
            try:
                await asyncio.wait({leading, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                leading.cancel()
                await asyncio.wait({leading})
            if not leading.cancelled():
                leading.result()
        log.info("ended")


def main() -> int:
    given = config.read()
    logging.basicConfig(
        level=logging.DEBUG if given.verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        asyncio.run(serve(given))
    except KybernateError as error:
        print(f"kybernate controller: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
