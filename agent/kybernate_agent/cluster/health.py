"""GET /healthz, /readyz and /metrics on a local address: for the kubelet's probes and for Prometheus.

Healthy: the event loop turns and answers. Ready: every instance of the journal is in a true state and the hook is
served; the API server need not be there, because the node does its work without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from kybernate.errors import ExternalError

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
REQUEST_BYTES = 8192


class AddressError(ExternalError):
    """cluster.health_address {address} cannot be listened on: {problem}. Choose another; empty switches it off."""


class HealthServer:
    """`ready` says whether /readyz is ok; `metrics` gives the text of /metrics."""

    def __init__(self, address: str, ready: Callable[[], bool], metrics: Callable[[], str]) -> None:
        self._address = address
        self._ready, self._metrics = ready, metrics
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Raises AddressError. Nothing where the address is empty."""
        if not self._address:
            return
        host, _, port = self._address.rpartition(":")
        try:
            self._server = await asyncio.start_server(self._serve, host.strip("[]"), int(port), limit=REQUEST_BYTES)
        except (OSError, ValueError, OverflowError) as error:
            raise AddressError(address=self._address, problem=str(error)) from error

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                status, body = self._answer(head)
                kind = "text/plain; version=0.0.4; charset=utf-8"
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body.encode())}\r\n"
                    f"Connection: close\r\n\r\n{body}".encode()
                )
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # whoever asked has gone, or asks nothing that we understand
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> tuple[str, str]:
        method, _, rest = head.decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            return "405 Method Not Allowed", "only GET\n"
        match path:
            case "/healthz":
                return "200 OK", "ok\n"
            case "/readyz":
                return ("200 OK", "ok\n") if self._ready() else ("503 Service Unavailable", "instances are taken up\n")
            case "/metrics":
                return "200 OK", self._metrics()
        return "404 Not Found", "here are /healthz, /readyz and /metrics\n"
