"""What is asked about the controller itself: /healthz, /readyz, /metrics.

/healthz   200 while the event loop answers
/readyz    200 once the caches are filled, whether we lead or not; else 503 and why
/metrics   Prometheus' text format 0.0.4
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from aiohttp import web

from kybernate.errors import ExternalError
from kybernate.kube.client import Client
from kybernate.kube.events import Recorder
from kybernate_controller.controller import Controller
from kybernate_controller.copies import Copies

PREFIX = "kybernate_controller"


class ListenError(ExternalError):
    """{address}: cannot listen there ({problem}). Choose another --listen, or free the port."""


class Health:
    """Answers about one controller: of workloads, and of checkpoints and restore jobs."""

    def __init__(
        self, controller: Controller, copies: Copies, client: Client, recorder: Recorder, leads: Callable[[], bool]
    ) -> None:
        self._controller = controller
        self._informers = (*controller.informers, *copies.informers)
        self._client = client
        self._recorder = recorder
        self._leads = leads

    @contextlib.asynccontextmanager
    async def served(self, address: str) -> AsyncIterator[None]:
        """Listen at host:port between `async with`; nowhere where it is empty. Raises ListenError."""
        if not address:
            yield
            return
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            host, _, port = address.rpartition(":")
            try:
                await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
            except (OSError, ValueError) as error:
                raise ListenError(address=address, problem=error) from error
            yield
        finally:
            await runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        missing = [informer for informer in self._informers if not informer.is_synced]
        if not missing:
            return web.Response(text="ok\n")
        lines = [f"{i.resource}: {i.problem or 'the first list is not here yet'}" for i in missing]
        return web.Response(status=503, text="\n".join(lines) + "\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        text = "".join(f"{line}\n" for line in self._lines())
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def _lines(self) -> Iterator[str]:
        controller, tally = self._controller, self._controller.tally
        yield from _metric("leader", "gauge", "1 while this process leads.", [((), int(self._leads()))])
        yield from _metric(
            "queue_length", "gauge", "Workloads that wait to be looked at.", [((), len(controller.queue))]
        )
        yield from _metric("looks_total", "counter", "Looks at a workload.", [((), tally.looks)])
        yield from _metric("look_failures_total", "counter", "Looks that failed.", [((), tally.failures)])
        yield from _metric("look_seconds_total", "counter", "Seconds that all looks took.", [((), tally.seconds)])
        actions = [((("action", name),), count) for name, count in sorted(tally.actions.items())]
        yield from _metric("actions_total", "counter", "Writes that were done, by kind.", actions)
        requests = [
            ((("verb", verb), ("resource", resource)), count)
            for (verb, resource), count in sorted(self._client.requests.items())
        ]
        yield from _metric("api_requests_total", "counter", "Requests to the API server.", requests)
        held: Counter[str] = Counter()
        broken: Counter[str] = Counter()
        for informer in self._informers:
            held[informer.resource.plural] += len(informer)
            broken[informer.resource.plural] |= informer.problem is not None
        yield from _metric("objects", "gauge", "Objects in the caches.", _by_resource(held))
        yield from _metric("watch_broken", "gauge", "1 while a kind is not followed.", _by_resource(broken))
        dropped = [((), self._recorder.dropped)]
        yield from _metric("events_dropped_total", "counter", "Events that could not be told.", dropped)
        if controller.instances.is_synced:
            tiers = Counter(i.status.tier or "none" for i in controller.instances.items())
            names = {"-": "awake"}
            by_tier = [((("tier", names.get(tier, tier)),), count) for tier, count in sorted(tiers.items())]
            yield from _metric("instances", "gauge", "GpuInstances by the tier of their state.", by_tier)


Labels = tuple[tuple[str, str], ...]


def _by_resource(counts: Counter[str]) -> list[tuple[Labels, float]]:
    return [((("resource", plural),), count) for plural, count in counts.items()]


def _metric(name: str, kind: str, says: str, values: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield f"# HELP {PREFIX}_{name} {says}"
    yield f"# TYPE {PREFIX}_{name} {kind}"
    for labels, value in values:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
        yield f"{PREFIX}_{name}{{{inside}}} {value}" if inside else f"{PREFIX}_{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
