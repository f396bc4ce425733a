"""The agent of a cluster's node, put together. The node's own work needs no API server: it begins first, ends last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from kybernate.api.gpuinstance import GpuInstance
from kybernate.errors import KybernateError, RefusedError
from kybernate.kube.client import Client
from kybernate.kube.credentials import Credentials, load_credentials
from kybernate.kube.events import Recorder
from kybernate_agent.cluster.checkpoints import Checkpoints
from kybernate_agent.cluster.gpunode import look, publish
from kybernate_agent.cluster.health import HealthServer
from kybernate_agent.cluster.metrics import Metrics
from kybernate_agent.cluster.source import ClusterSource
from kybernate_agent.cluster.status import StatusWriter
from kybernate_agent.config import ClusterConfig
from kybernate_agent.instance import Record
from kybernate_agent.node import Node
from kybernate_agent.server import Api, ApiServer, News
from kybernate_agent.services import Services
from kybernate_agent.standalone.cri import Cri

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0


class KubectlError(RefusedError):
    """this node is in a cluster: use `kubectl {verb}`."""


class Refused:
    """Workloads are not applied to a node of a cluster."""

    async def apply(self, text: str, file_name: str) -> list[tuple[str, str]]:
        raise KubectlError(verb="apply")

    async def delete(self, name: str, wait: bool) -> str:
        raise KubectlError(verb="delete")


async def serve_cluster(services: Services, config: ClusterConfig, news: News, stop: asyncio.Event) -> None:
    """Until `stop` is set. Raises KybernateErrors that make a start impossible: credentials that cannot be used."""
    node, metrics = Node(services), Metrics()
    credentials = await load_credentials(Path(config.kubeconfig) if config.kubeconfig else None)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(_client(credentials))
        recorder = await stack.enter_async_context(Recorder(client, "kybernate-agent", host=config.node))
        cri = Cri(services.config.containerd_socket)
        stack.push_async_callback(cri.close)
        source = node.source = ClusterSource(node, client, recorder, config, cri.image_id)
        checkpoints = Checkpoints(node, client, recorder, config.node, cri.image_id)

        def seen(record: Record) -> GpuInstance | None:
            if record.member is None or record.wanted is None or not source.instances.is_synced:
                return None
            return source.instances.get(record.wanted.namespace, record.member.name)

        writer = StatusWriter(client, recorder, config.node, node.actors.get, seen)

        def changed(name: str) -> None:
            metrics.changed(name, node.actors.get(name))
            writer.changed(name)
            source.happened()

        news.also(changed)
        stack.push_async_callback(writer.close)
        metrics.known(services.journal.records())
        health = HealthServer(
            config.health_address,
            lambda: node.ready,
            lambda: metrics.text(node.actors.values(), writer.writes, client.requests),
        )
        await health.open()  # first: an instance's keeper may be at a dump for minutes
        stack.push_async_callback(health.close)
        stack.push_async_callback(node.close)
        await node.open()
        api = ApiServer(services.config.run, Api(node, Refused(), news))
        await api.open()
        stack.push_async_callback(api.close)
        log.info("ready: node %s of the cluster at %s", config.node, credentials.server)
        following = asyncio.create_task(source.follow())
        publishing = asyncio.create_task(publish(client, config.node, lambda: look(services, len(node.actors))))
        copying = asyncio.create_task(checkpoints.follow())
        stack.push_async_callback(_cancelled, following, publishing, copying)
        for name in list(node.actors):
            changed(name)
        ended = asyncio.create_task(stop.wait())
        await asyncio.wait({ended, following}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()


def _client(credentials: Credentials) -> Client:
    return Client(credentials, program="kybernate-agent", deadline_seconds=REQUEST_SECONDS)


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(KybernateError):
        await asyncio.gather(*tasks, return_exceptions=True)
