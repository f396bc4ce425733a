"""`python -m kybernate_agent [--config FILE]`: run the agent of this machine until SIGTERM or SIGINT.

Ending it changes nothing for the workloads: who sleeps sleeps on, and the next agent takes everything up again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from kybernate import criu
from kybernate.criu import kdat
from kybernate.errors import DeadlineError, ExternalError, KybernateError, RefusedError
from kybernate.store import FolderStore, load_key
from kybernate_agent.cluster.starter import KubeletStarter
from kybernate_agent.config import AgentConfig, load_config, prepare_folders
from kybernate_agent.journal import Journal
from kybernate_agent.node import Node
from kybernate_agent.server import Api, ApiServer, News
from kybernate_agent.services import Services
from kybernate_agent.standalone.folder import Folder
from kybernate_agent.standalone.starter import CriStarter
from kybernate_agent.standalone.wishes import Wishes
from kybernate_agent.starter import Starter
from kybernate_agent.traffic import Kubelet
from kybernate_agent.workloads import Workloads

log = logging.getLogger("kybernate_agent")


class InUseError(RefusedError):
    """{folder}: another agent uses this folder. Stop it, or give this one a state_dir and run_dir of its own."""


async def serve(config: AgentConfig) -> None:
    """Take up what runs, then serve until told to end. Raises KybernateErrors that make a start impossible."""
    prepare_folders(config)
    with alone(config.state):
        await _serve(config)


async def _serve(config: AgentConfig) -> None:
    await asyncio.to_thread(_keep_criu_quick)
    facts = await asyncio.to_thread(criu.preflight)
    journal = Journal(config.state / "journal.db")
    news = News()
    starter: Starter = KubeletStarter(config) if config.cluster else await CriStarter.connect(config)
    kubelet = Kubelet() if config.cluster else None
    services = Services(
        config=config,
        journal=journal,
        store=FolderStore(config.state / "store", load_key(config.state / "node.key"), config.store_reserve_bytes),
        starter=starter,
        changed=news.changed,
        criu_version=".".join(map(str, facts.criu or ())),
        runc_version=".".join(map(str, facts.runc or ())),
        sys_resource=facts.sys_resource,
        kubelet=kubelet,
        park_refusal=" ".join(f"{f.message} {f.remedy}" for f in facts.findings if f.fatal),
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        if kubelet is not None:
            kubelet.open()
        if config.cluster:
            from kybernate_agent.cluster.serve import serve_cluster  # only here, for the size of it

            await serve_cluster(services, config.cluster, news, stop)
        else:
            await serve_folder(services, news, stop)
    finally:
        await starter.close()
        journal.close()
        if kubelet is not None:
            kubelet.close()


async def serve_folder(services: Services, news: News, stop: asyncio.Event) -> None:
    """Standalone: workloads come from a folder, and the agent starts their pods itself."""
    config, node = services.config, Node(services)
    wishes = Wishes(node)
    node.source = wishes
    workloads = Workloads(Folder(config.workloads), node, wishes)
    api = ApiServer(config.run, Api(node, workloads, news))
    await node.open()
    watching = asyncio.create_task(workloads.run())
    try:
        await api.open()
        log.info("ready: socket %s, workloads from %s", config.run / "agent.sock", config.workloads)
        ended = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({ended, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching in done:
            watching.result()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await api.close()
        await node.close()


@contextlib.contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold the state folder: two agents would answer for the same instances. Raises InUseError."""
    handle = os.open(state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(folder=state) from error
        yield
    finally:
        os.close(handle)


def _keep_criu_quick() -> None:
    """CRIU probes the kernel at every call where its cache cannot be kept; without the cache it only takes longer."""
    try:
        if kdat.clear_stale():
            log.info("removed a stale /run/criu.kdat.tmp")
        if kdat.prime():
            log.info("made CRIU's cache of the kernel's features: /run/criu.kdat")
    except (ExternalError, RefusedError, DeadlineError) as error:
        log.warning("%s", error)


def _open_many_files() -> None:
    """The usual soft limit of 1024 is for programs that use select(2); a node has more keepers, queues and images."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> int:
    parser = argparse.ArgumentParser(prog="kybernate agent", description="The agent of this machine.")
    parser.add_argument("--config", type=Path, help="YAML file; without it the defaults")
    parser.add_argument("--verbose", action="store_true", help="log every decision")
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    _open_many_files()
    try:
        asyncio.run(serve(load_config(options.config)))
    except KybernateError as error:
        print(f"kybernate agent: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
