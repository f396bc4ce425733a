"""What a container's mounts are, told from the paths of their sources; pure but for one look at subPaths.

A bundle names sources on the host, and those of the same volume differ from pod to pod. The kubelet's layout is fixed,
and the agent's own (without a cluster) is like it:

    <root>/pods/<uid>/volumes/kubernetes.io~<plugin>/<name>[/...]    a volume
    <root>/pods/<uid>/volume-subpaths/<name>/<container>/<number>    a volume's subPath
    <root>/pods/<uid>/volumes/<name>                                 the agent's emptyDir
    <root>/pods/<uid>/...                                            etc-hosts, termination log
    .../<sandbox id>/...                                             containerd's: resolv.conf, hostname, /dev/shm

All other bind mounts are hostPaths. Sources: Kubernetes pkg/kubelet/kubelet_getters.go; containerd pkg/cri/server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

EMPTY_DIR = "emptyDir"
_KINDS = {
    "empty-dir": EMPTY_DIR,
    "configmap": "configMap",
    "secret": "secret",
    "projected": "projected",
    "downward-api": "downwardAPI",
}
_PERSISTENT = "persistentVolumeClaim"
_VOLUME = re.compile(r"(?P<pod>.*)/volumes/(?:[^/~]+~(?P<plugin>[^/]+)/)?(?P<name>[^/]+)(?:/.*)?")
_SUBPATH = re.compile(r"(?P<pod>.*)/volume-subpaths/(?P<name>[^/]+)/[^/]+/[^/]+")
# Whose names say what they are. A projected volume's name is random where the service account's token is in it.
_NAMED = (EMPTY_DIR, _PERSISTENT, "hostPath")


class Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kind` is a volume's, or "kubelet", "sandbox", or the file system's type; `name` is the volume's, or the path of
    a hostPath. `volume` is the folder of a whole emptyDir, also where only a subPath of it is mounted."""

    destination: str
    kind: str
    name: str
    read_only: bool
    source: str = ""
    volume: str = ""

    @property
    def told(self) -> str:
        """For people."""
        named = f" {self.name}" if self.kind in _NAMED else ""
        return f"{self.kind}{named}{', read-only' if self.read_only else ''}"


def mounts_of(listed: Iterable[Mapping[str, Any]], pod_uid: str, sandbox: str) -> tuple[Mount, ...]:
    """Of the `mounts` of a config.json, by destination."""
    found = [_mount(entry, pod_uid, sandbox) for entry in listed]
    return tuple(sorted(found, key=lambda mount: mount.destination))


def _mount(entry: Mapping[str, Any], pod_uid: str, sandbox: str) -> Mount:
    options = entry.get("options") or ()
    destination, source, read_only = str(entry["destination"]), str(entry.get("source") or ""), "ro" in options
    if entry.get("type") != "bind" and not {"bind", "rbind"} & {*options}:
        return Mount(destination, str(entry.get("type") or "none"), "", read_only)
    kind, name, volume = _of_source(source, pod_uid, sandbox)
    return Mount(destination, kind, name, read_only, source, volume)


def _of_source(source: str, pod_uid: str, sandbox: str) -> tuple[str, str, str]:
    """(kind, name, folder of the whole emptyDir)."""
    if pod_uid and f"/pods/{pod_uid}/" in source:
        root = source[: source.index(f"/pods/{pod_uid}/")] + f"/pods/{pod_uid}"
        if match := _VOLUME.fullmatch(source):
            kind = _kind(match["plugin"])
            return kind, match["name"], _whole(source, match["name"]) if kind == EMPTY_DIR else ""
        if match := _SUBPATH.fullmatch(source):
            return _of_subpath(root, match["name"])
        return "kubelet", "", ""
    if sandbox and f"/{sandbox}/" in source:
        return "sandbox", "", ""
    return "hostPath", source, ""


def _kind(plugin: str | None) -> str:
    return EMPTY_DIR if plugin is None else _KINDS.get(plugin, _PERSISTENT)


def _whole(source: str, name: str) -> str:
    """The volume's folder, of a source in it."""
    before, _, after = source.partition("/volumes/")
    words = after.split("/")
    return f"{before}/volumes/{'/'.join(words[: words.index(name, 1 if '~' in words[0] else 0) + 1])}"


def _of_subpath(pod: str, name: str) -> tuple[str, str, str]:
    for folder in sorted(Path(pod, "volumes").glob(f"*~*/{name}")):
        kind = _kind(folder.parent.name.partition("~")[2])
        return kind, name, str(folder) if kind == EMPTY_DIR else ""
    return _PERSISTENT, name, ""


def difference(old: Sequence[Mount], new: Sequence[Mount]) -> str:
    """The first mount that is not the same in both, in words; empty where all are. Pure."""
    before, now = ({mount.destination: mount for mount in mounts} for mounts in (old, new))
    for destination in sorted({*before, *now}):
        one, other = before.get(destination), now.get(destination)
        if one is None or other is None:
            there = one or other
            assert there is not None
            return f"{destination} ({there.told}) is mounted {'before only' if other is None else 'now only'}"
        if one.told != other.told:
            return f"{destination} was {one.told} and is {other.told}"
    return ""
