"""Through which proxy a server is reached: what kubeconfig says, else the environment as Go's programs read it.

`HTTPS_PROXY` (or `https_proxy`) for https servers, `HTTP_PROXY` for http; `NO_PROXY` lists hosts, `.domains`,
addresses and networks (CIDR), each with or without a port, and `*`. Loopback is never proxied.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from kybernate.kube.errors import CredentialsError


@dataclass(frozen=True)
class Proxy:
    """Where it is, and who we are to it; the password is in no text of this object."""

    url: str
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What only the proxy is to see."""
        if not self.user:
            return {}
        basic = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Proxy-Authorization": f"Basic {basic}"}


def parse(url: str) -> Proxy:
    """Raises CredentialsError where `url` is no http proxy."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise CredentialsError(source="proxy", problem="its address is not readable") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise CredentialsError(source=f"proxy {host or ''}", problem="only http and https proxies are supported")
    address = f"[{host}]" if ":" in host else host
    clean = f"{parts.scheme}://{address}" + (f":{port}" if port else "")
    return Proxy(clean, unquote(parts.username or ""), unquote(parts.password or ""))


def of_environment(server: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for `server` (a URL); None where it is reached directly."""
    parts = urlsplit(server)
    name = f"{parts.scheme}_proxy"
    url = environment.get(name.upper()) or environment.get(name)
    if not url or _direct(parts.hostname or "", parts.port, environment):
        return None
    return parse(url)


def _direct(host: str, port: int | None, environment: Mapping[str, str]) -> bool:
    address = _address(host)
    if host == "localhost" or (address and address.is_loopback):
        return True
    exceptions = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    return any(_covers(entry.strip().lower(), host.lower(), port, address) for entry in exceptions.split(","))


def _covers(
    entry: str, host: str, port: int | None, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
) -> bool:
    if not entry:
        return False
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdigit() and not _address(entry):
        if wanted != str(port):
            return False
        entry = name
    entry = entry.removeprefix("*")
    if entry.startswith("."):
        return host.endswith(entry)
    return host == entry.strip("[]") or host.endswith(f".{entry}")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
