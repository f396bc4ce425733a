"""A container as its bundle says: what a state was made in, or what is to take one.

All of it stands in config.json, as containerd has written it, so a container needs no process for it; but for the
image's digest, which containerd is asked for, and the pod's addresses, which its network namespace has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from kybernate.criu import privileges
from kybernate.errors import InvalidError, KybernateError
from kybernate_agent import namespaces, processes, volumes
from kybernate_agent.standalone.cri import Cri
from kybernate_agent.volumes import Mount

log = logging.getLogger(__name__)

_SHARED = {"network": "net", "uts": "uts"}


class BundleError(InvalidError):
    """{path} cannot be read: {cause}"""


@dataclass(frozen=True)
class Facts:
    """A container as its bundle says. `digest` is the image's own where it is known; `upper` the writable layer."""

    container: str
    pod_uid: str
    sandbox: str
    image: str
    digest: str
    upper: str
    mounts: tuple[Mount, ...]
    allowed: privileges.Allowed
    shm: str = ""
    addresses: tuple[str, ...] = ()
    on_host: str = ""  # the kind of a namespace that it has in common with the node: network, uts


async def facts_of(bundle: Path, socket: str = "") -> Facts:
    """Of a container with a mounted root file system; it needs no process. containerd at `socket` is asked for the
    image's digest. Raises BundleError."""
    facts = await asyncio.to_thread(read, bundle)
    return replace(facts, digest=await _digest(socket, facts.container)) if socket else facts


async def _digest(socket: str, container: str) -> str:
    """Empty where containerd cannot say: then the image's name counts."""
    cri = Cri(socket)
    try:
        return (await cri.container_status(container)).image_ref
    except KybernateError as error:
        log.warning("the image of container %s: only its name counts: %s", container, error)
        return ""
    finally:
        await cri.close()


def read(bundle: Path) -> Facts:
    """As `facts_of`, without the digest. Blocks."""
    path = bundle / "config.json"
    try:
        config: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        notes: dict[str, str] = config.get("annotations") or {}
        uid, sandbox = (notes.get(f"io.kubernetes.cri.sandbox-{name}", "") for name in ("uid", "id"))
        found = volumes.mounts_of(config.get("mounts") or (), uid, sandbox)
        return Facts(
            container=bundle.name,
            pod_uid=uid,
            sandbox=sandbox,
            image=notes.get("io.kubernetes.cri.image-name", ""),
            digest="",
            upper=processes.writable_layer_of_bundle(bundle),
            mounts=found,
            allowed=privileges.allowed(config),
            addresses=_addresses(_namespaces(config)),
            on_host=_on_host(_namespaces(config)),
            shm=next((it.source for it in found if it.destination == "/dev/shm" and it.kind == "sandbox"), ""),
        )
    except (OSError, msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(path=str(path), cause=str(error)) from error


def _namespaces(config: Mapping[str, Any]) -> dict[str, str]:
    """{kind: path} of those that are joined and not made."""
    listed = (config.get("linux") or {}).get("namespaces") or ()
    return {str(space["type"]): str(space["path"]) for space in listed if space.get("path")}


def _addresses(joined: Mapping[str, str]) -> tuple[str, ...]:
    """Of the pod; none where its network is gone."""
    with contextlib.suppress(OSError):
        if path := joined.get("network"):
            return namespaces.inside(path, namespaces.NETWORK, namespaces.addresses)
    return ()


def _on_host(joined: Mapping[str, str]) -> str:
    """The agent's own are the node's, or those of its pod, where nobody else has a place either."""
    for kind, name in _SHARED.items():
        for process in ("1", "self"):
            with contextlib.suppress(OSError):
                if kind in joined and os.path.samefile(joined[kind], f"/proc/{process}/ns/{name}"):
                    return kind
    return ""
