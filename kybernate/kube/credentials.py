"""Who we are to the API server, and how we know that it is the one: kept fresh, and out of every log.

Where they come from, the first that is there: a kubeconfig that was named; $KUBECONFIG; the pod's service account
(token file and CA, in which case the `kubernetes` package is not needed); ~/.kube/config.

    fresh ──its time is up (token file: 10 s; plugin: 1 min before it expires)──> loaded again, by the next request
    fresh ──the API server answers 401──> loaded again at once, at most every 10 s, and the request is repeated

While loading again fails, the old ones are used on: they may still be good, and if not, a 401 says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kybernate.errors import KybernateError
from kybernate.kube import kubeconfig as reader
from kybernate.kube import proxy as proxies
from kybernate.kube.errors import CredentialsError
from kybernate.kube.proxy import Proxy

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_SECONDS = 10.0
"""How long a token file's contents are used; the kubelet renews the file at 80 % of the token's life."""
SKEW_SECONDS = 60.0
"""So long before they expire, credentials of a plugin are renewed."""
RENEW_SECONDS = 10.0
"""A server that answers 401 to everything makes us start a plugin at most so often."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """What one request needs."""

    server: str
    tls: ssl.SSLContext | None = field(repr=False)
    authorization: str = field(default="", repr=False)
    server_name: str = ""
    proxy: Proxy | None = None
    namespace: str = "default"
    fresh_seconds: float | None = None
    """How long these may be used before they are loaded again; None: until a 401."""


Load = Callable[[], Awaitable[Access]]


class Credentials:
    """The newest Access, loaded by `load` whenever it has to be."""

    def __init__(self, load: Load, access: Access, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._lock = asyncio.Lock()
        self._loaded_at = clock()
        self._tried_at = -RENEW_SECONDS + self._loaded_at
        self._access = access

    @property
    def server(self) -> str:
        return self._access.server

    @property
    def namespace(self) -> str:
        """The namespace of the context, or of the pod; "default" where there is none."""
        return self._access.namespace

    async def access(self) -> Access:
        """What to send now. Never fails: where nothing newer is to be had, it is what was."""
        fresh = self._access.fresh_seconds
        if fresh is not None and self._clock() - self._loaded_at >= fresh:
            async with self._lock:
                if self._clock() - self._loaded_at >= fresh:
                    await self._renew()
        return self._access

    async def renew(self, refused: Access) -> Access | None:
        """Others than `refused`, which the API server did not accept; None where there are none."""
        async with self._lock:
            if self._access is refused and self._clock() - self._tried_at >= RENEW_SECONDS:
                await self._renew()
            return self._access if self._access is not refused else None

    async def _renew(self) -> None:
        self._tried_at = self._clock()
        try:
            access = await self._load()
        except KybernateError as error:
            log.warning("credentials are not renewed: %s", error)
            self._loaded_at = self._tried_at  # not with every request
            return
        self._access, self._loaded_at = access, self._clock()


async def load_credentials(
    kubeconfig: Path | None = None,
    *,
    context: str | None = None,
    environment: Mapping[str, str] | None = None,
    service_account: Path = SERVICE_ACCOUNT,
    deadline_seconds: float = reader.DEADLINE_SECONDS,
) -> Credentials:
    """Credentials from `kubeconfig`, or from where the module's docstring says.

    Raises CredentialsError, CredentialsDeadlineError.
    """
    environ = os.environ if environment is None else environment
    named = str(kubeconfig) if kubeconfig else environ.get("KUBECONFIG", "")
    if not named and environ.get("KUBERNETES_SERVICE_HOST") and (service_account / "token").exists():
        load: Load = _InCluster(service_account, environ)
    else:
        source = named or str(Path(environ.get("HOME", "~")).expanduser() / ".kube" / "config")
        load = _Kubeconfig(source, context, environ, deadline_seconds)
    return Credentials(load, await load())


class _InCluster:
    """The pod's service account: both files may be renewed at any time."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        host = environ["KUBERNETES_SERVICE_HOST"]
        port = environ.get("KUBERNETES_SERVICE_PORT") or "443"
        self._server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._folder = folder
        self._proxy = proxies.of_environment(self._server, environ)
        self._tls: tuple[str, ssl.SSLContext] | None = None

    async def __call__(self) -> Access:
        token, authority = self._read("token").strip(), self._read("ca.crt")
        if not token:
            raise CredentialsError(source=self._folder / "token", problem="it is empty")
        if self._tls is None or self._tls[0] != authority:
            self._tls = (authority, tls_context(str(self._folder), authority=authority))
        namespace = "default"
        with contextlib.suppress(CredentialsError):
            namespace = self._read("namespace").strip() or namespace
        return Access(
            server=self._server,
            tls=self._tls[1],
            authorization=f"Bearer {token}",
            proxy=self._proxy,
            namespace=namespace,
            fresh_seconds=TOKEN_SECONDS,
        )

    def _read(self, name: str) -> str:
        try:
            return (self._folder / name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialsError(source=self._folder / name, problem=f"it cannot be read ({error})") from error


class _Kubeconfig:
    """One or several kubeconfig files, read by the program in `kubeconfig`."""

    def __init__(self, source: str, context: str | None, environ: Mapping[str, str], deadline_seconds: float) -> None:
        self._source, self._context, self._environ = source, context, environ
        self._deadline = deadline_seconds

    async def __call__(self) -> Access:
        loaded = await reader.load(self._source, self._context, deadline_seconds=self._deadline)
        secure = loaded.server.startswith("https://")
        fresh = None if loaded.expires is None else max(RENEW_SECONDS, loaded.expires - time.time() - SKEW_SECONDS)
        return Access(
            server=loaded.server,
            tls=tls_context(
                self._source,
                authority=loaded.authority,
                certificate=loaded.certificate,
                key=loaded.key,
                verify=loaded.verify,
            )
            if secure
            else None,
            authorization=loaded.authorization,
            server_name=loaded.server_name,
            proxy=proxies.parse(loaded.proxy) if loaded.proxy else proxies.of_environment(loaded.server, self._environ),
            namespace=loaded.namespace or "default",
            fresh_seconds=fresh,
        )


def tls_context(
    source: str, *, authority: str = "", certificate: str = "", key: str = "", verify: bool = True
) -> ssl.SSLContext:
    """A client's context from PEM texts. `authority` empty: the machine's own authorities.

    Raises CredentialsError.
    """
    try:
        context = ssl.create_default_context(cadata=authority or None)
        # Python 3.13 asks more of an authority's form than Go does, and than many clusters' authorities have.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if certificate:
            _load_chain(context, certificate, key)
    except (ssl.SSLError, ValueError) as error:
        raise CredentialsError(source=source, problem=f"its certificates cannot be used ({error})") from error
    return context


def _load_chain(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """The ssl module takes files only; this one is in memory, and nobody else's."""
    memory = os.memfd_create("kybernate-tls")
    try:
        with os.fdopen(os.dup(memory), "w") as file:
            file.write(f"{certificate}\n{key}\n")
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
