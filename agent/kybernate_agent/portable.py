"""What of an instance lies outside of CRIU's images, so that it can come back in another container than its own.

    layer.tar              the upper folder of the container's overlay
    emptydir-<name>.tar    each emptyDir that it mounts
    shm.tar                the sandbox's /dev/shm, which is mounted from outside
    portable.json          of what container all this is: image, mounts, pod, rights, processor (`Saved`)

`save` writes them beside CRIU's images while everything is dumped and nothing runs, before the store's commit: the
manifest seals them too. `restore` fills a new container with them, before it has a process, and refuses one that is not
of the same image, mounts and rights.

Not each park needs all. Layer and emptyDirs survive a restart of the machine where they are, and a park in place finds
them there; what lies in memory (tmpfs: /dev/shm, emptyDirs of medium Memory) does not. So every park saves that, and
only one that is to go elsewhere (`whole`) saves the rest. The layer alone is added (`save_layer`) where the container
is over and the next one is the kubelet's to make. When a piece is put back:

                                same sandbox     same pod, new sandbox     another pod
    layer                       carried, or      carried, or unpacked      unpacked
                                unpacked
    emptyDir                    is there         is there; replaced if     replaced
                                                 it lay in memory and the
                                                 machine has restarted
    /dev/shm                    is there         replaced                  replaced

*Carried* is copied from the container before, by the caller, where that is still there and no archive holds it. PVCs,
hostPaths and what the kubelet makes of ConfigMaps and the like are the pod's, and only compared.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import time
from pathlib import Path

import msgspec

from kybernate.criu import addresses, privileges
from kybernate.criu.mounts import mounts
from kybernate.errors import ExternalError, RefusedError, StateLostError
from kybernate.store import ArchiveFailedError
from kybernate.store.archive import entries, pack, packed_bytes, unpack
from kybernate_agent import namespaces, volumes
from kybernate_agent.facts import BundleError, Facts, facts_of, read
from kybernate_agent.volumes import EMPTY_DIR, Mount

__all__ = [
    "FILE",
    "BundleError",
    "Facts",
    "HostNameError",
    "ImageDiffersError",
    "MountDiffersError",
    "NotPortableError",
    "ProcessorDiffersError",
    "Saved",
    "ViewError",
    "facts_of",
    "has_moved",
    "holds_layer",
    "images_for",
    "is_ours",
    "layer_bytes",
    "load",
    "name_host",
    "needed_bytes",
    "restore",
    "save",
    "save_layer",
]

FILE = "portable.json"
LAYER, SHM = "layer.tar", "shm.tar"
VERSION = 1
SECONDS = 90.0  # a container's start has two minutes
_LONGEST_NAME = 64  # of a host; a longer one is refused by the kernel
# Instruction sets that a program chooses among at its start; others of the flags are about the kernel's ways.
_INSTRUCTIONS = (
    "sse", "ssse", "avx", "fma", "f16c", "bmi", "abm", "aes", "vaes", "pclmul", "vpclmul", "popcnt", "movbe", "sha_ni",
    "gfni", "amx", "adx", "rdrand", "rdseed", "xsave", "clflush", "clwb", "erms", "fsrm", "cx16", "rtm", "hle", "pku",
    "fsgsbase", "movdir", "lahf_lm",
)  # fmt: skip


class ImageDiffersError(RefusedError):
    """{container}: its image is {new}, and the state was made in {old}. Give the template the image of before, or
    begin anew."""


class MountDiffersError(RefusedError):
    """{container}: {problem}. A state comes back only with the mounts it was made with: give the template those of
    before, or begin anew."""


class ProcessorDiffersError(RefusedError):
    """{container}: this node's processor lacks {missing}, which the programs may have chosen to use. Restore on a node
    like the one before."""


class NotPortableError(RefusedError):
    """{container}: {problem}. Only the pod that it was parked in can have it back."""


class ViewError(ExternalError):
    """The images cannot be shown with the pod's new addresses in {path}: {cause}"""


class HostNameError(ExternalError):
    """The host name of process {pid} cannot be set to {name}: {cause}"""


class Saved(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """portable.json. `archives` maps the names of emptyDirs to their files, `in_memory` are those that a restart of the
    machine (another `boot`) takes away; `allowed` is what the container's configuration was."""

    version: int = VERSION
    whole: bool
    container: str
    pod_uid: str
    sandbox: str
    image: str
    digest: str
    mounts: tuple[Mount, ...]
    allowed: privileges.Allowed
    architecture: str
    instructions: tuple[str, ...]
    archives: dict[str, str]
    in_memory: tuple[str, ...]
    boot: str
    shm: bool
    addresses: tuple[str, ...]


async def needed_bytes(container: Facts, whole: bool, seconds: float = SECONDS) -> int:
    """About how much `save` will write. Raises ArchiveFailedError, DeadlineError."""
    until = time.monotonic() + seconds

    def measure() -> int:
        return sum(packed_bytes(folder, until) for folder in _pieces(container, whole).values())

    return await asyncio.to_thread(measure)


async def save(images: Path, container: Facts, *, whole: bool, seconds: float = SECONDS) -> None:
    """Write the files of the module's head into `images`, a staging that is not committed yet.

    For a container whose processes are frozen or dumped: its layer is its own and stands still, or that is an error;
    to emptyDirs and /dev/shm others of the pod may write. Whether it has ended meanwhile is for the caller to ask
    (`sleep.save`). Raises ArchiveFailedError, DeadlineError, NotPortableError.
    """
    await asyncio.to_thread(_save, images, container, whole, time.monotonic() + seconds)


async def layer_bytes(upper: Path, seconds: float = SECONDS) -> int:
    """About how much `save_layer` will write. Raises ArchiveFailedError, DeadlineError."""
    return await asyncio.to_thread(lambda: packed_bytes(upper, time.monotonic() + seconds))


async def save_layer(images: Path, upper: Path, seconds: float = SECONDS) -> None:
    """Write the layer of a container that is over into `images`, a staging that is not committed yet.

    Nobody writes to it any more, but it may be on its way out, from the inside: that there is less of it afterwards is
    an error. Raises ArchiveFailedError, DeadlineError.
    """
    await asyncio.to_thread(_save_layer, images, upper, seconds)


def _save_layer(images: Path, upper: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    before = entries(upper, until)
    pack(upper, images / LAYER, until)
    if entries(upper, until) != before:
        raise ArchiveFailedError(path=str(upper), problem="was being removed while it was packed")


def is_ours(file: str) -> bool:
    """Whether a file beside the images is written here, and not by CRIU."""
    return file == FILE or file.endswith(".tar")


def holds_layer(images: Path) -> bool:
    """Whether verified images have the container's writable layer beside them."""
    return (images / LAYER).exists()


async def restore(images: Path, new: Facts, seconds: float = SECONDS) -> bool:
    """Fill a new container, which has no process yet, with what `save` wrote; False: its layer is to be carried.

    `images` are a verified checkpoint's. Nothing is written before all is compared. Raises ImageDiffersError,
    MountDiffersError, ProcessorDiffersError, PrivilegesExceedError, NotPortableError, ArchiveFailedError,
    ArchiveUnsafeError, DeadlineError, StateLostError (portable.json is not understood).
    """
    return await asyncio.to_thread(_restore, images, new, time.monotonic() + seconds)


def has_moved(images: Path, sandbox: str) -> bool:
    """Whether verified images were made in another sandbox, hence in another network. Raises StateLostError."""
    saved = load(images)
    return saved is not None and saved.sandbox != sandbox


def load(images: Path) -> Saved | None:
    """portable.json of verified images; None where an agent made them that did not write it. Raises StateLostError."""
    try:
        saved = msgspec.json.decode((images / FILE).read_bytes(), type=Saved)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StateLostError(f"{images / FILE}: not understood by this agent: {error}") from error
    if saved.version != VERSION:
        raise StateLostError(f"{images / FILE}: version {saved.version} is not known to this agent")
    return saved


# -- this machine


def instructions() -> tuple[str, ...]:
    """The instruction sets of this machine's processor. Source: /proc/cpuinfo."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return tuple(sorted(flag for flag in flags.split() if flag.startswith(_INSTRUCTIONS)))
        if name.strip() == "Features":
            return tuple(sorted(flags.split()))
    return ()


# -- save


def _pieces(container: Facts, whole: bool) -> dict[str, Path]:
    """{file: the folder that it holds}, for one save."""
    found = {}
    if whole:
        if not container.upper:
            raise NotPortableError(container=container.container, problem="its root file system is no overlay")
        found[LAYER] = Path(container.upper)
    in_memory = _in_memory(container)
    for name, folder in _empty_dirs(container).items():
        if whole or name in in_memory:
            found[_archive_of(name)] = Path(folder)
    if container.shm and os.path.isdir(container.shm):
        found[SHM] = Path(container.shm)
    return found


def _empty_dirs(container: Facts) -> dict[str, str]:
    return {mount.name: mount.volume for mount in container.mounts if mount.kind == EMPTY_DIR}


def _in_memory(container: Facts) -> tuple[str, ...]:
    """emptyDirs of medium Memory: a tmpfs is mounted there."""
    places = {mount.mountpoint for mount in mounts("self") if mount.kind == "tmpfs"}
    return tuple(name for name, folder in _empty_dirs(container).items() if folder in places)


def _archive_of(name: str) -> str:
    return f"emptydir-{name}.tar"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _save(images: Path, container: Facts, whole: bool, until: float) -> None:
    pieces = _pieces(container, whole)
    for file, folder in pieces.items():
        pack(folder, images / file, until, shared=file != LAYER)
    saved = Saved(
        whole=whole,
        container=container.container,
        pod_uid=container.pod_uid,
        sandbox=container.sandbox,
        image=container.image,
        digest=container.digest,
        mounts=container.mounts,
        allowed=container.allowed,
        architecture=platform.machine(),
        instructions=instructions(),
        archives={n: _archive_of(n) for n in _empty_dirs(container) if _archive_of(n) in pieces},
        in_memory=_in_memory(container),
        boot=_boot(),
        shm=SHM in pieces,
        addresses=container.addresses,
    )
    try:
        fd = os.open(images / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(msgspec.json.encode(saved))
    except OSError as error:
        raise ArchiveFailedError(path=str(images / FILE), problem=f"cannot be written: {error}") from error


# -- restore


def refuse_other(saved: Saved, new: Facts, found: tuple[str, ...], architecture: str) -> None:
    """Raises the error of what differs between the container that was dumped and the new one. Pure."""
    if not _same_image(saved, new):
        old, now = (f"{it.image} ({it.digest})" if it.digest else it.image for it in (saved, new))
        raise ImageDiffersError(container=new.container, old=old, new=now)
    if problem := volumes.difference(saved.mounts, new.mounts):
        raise MountDiffersError(container=new.container, problem=problem)
    missing = sorted({*saved.instructions} - {*found})
    if saved.architecture != architecture or missing:
        lacking = saved.architecture if saved.architecture != architecture else ", ".join(missing)
        raise ProcessorDiffersError(container=new.container, missing=lacking)
    if not saved.whole and saved.pod_uid != new.pod_uid:
        problem = f"it was parked for pod {saved.pod_uid} alone, without its emptyDirs at least"
        raise NotPortableError(container=new.container, problem=problem)


def _same_image(saved: Saved, new: Facts) -> bool:
    """containerd says `<repository>@<digest>` of a pulled image and the id of another: only like is compared."""
    (_, at_old, old), (_, at_new, now) = saved.digest.rpartition("@"), new.digest.rpartition("@")
    if old and now and at_old == at_new:
        return old == now
    return saved.image == new.image


def _restore(images: Path, new: Facts, until: float) -> bool:
    saved = load(images)
    if saved is None:
        raise NotPortableError(container=new.container, problem="its images were made by an older agent")
    refuse_other(saved, new, instructions(), platform.machine())
    privileges.refuse_exceeding(new.container, privileges.held(images), new.allowed, saved.allowed)
    if saved.sandbox != new.sandbox:
        if new.on_host:
            # CRIU would set the node's host name to the pod's, and bind what the pod had bound on the node.
            raise NotPortableError(container=new.container, problem=f"it shares the node's {new.on_host} namespace")
        folders = _empty_dirs(new)
        for name, file in saved.archives.items():
            gone = saved.boot != _boot() and name in saved.in_memory
            if gone or saved.pod_uid != new.pod_uid:
                unpack(images / file, Path(folders[name]), until, replace=True)
        if saved.shm:
            unpack(images / SHM, Path(new.shm), until, replace=True)
    if not holds_layer(images):
        return False
    if not new.upper:
        raise NotPortableError(container=new.container, problem="its root file system is no overlay")
    unpack(images / LAYER, Path(new.upper), until)
    return True


# -- another network and host name


async def images_for(images: Path, bundle: Path, view: Path) -> Path:
    """The folder for CRIU to restore `images` from that have moved: another one where sockets are bound to an address
    of the former pod, with this pod's in its place. Raises BundleError, ImageFormatError, StateLostError, ViewError."""
    try:
        return await asyncio.to_thread(_images_for, images, bundle, view)
    except OSError as error:
        raise ViewError(path=str(view), cause=str(error)) from error


def _images_for(images: Path, bundle: Path, view: Path) -> Path:
    saved = load(images)
    before = saved.addresses if saved else ()
    instead = addresses.replacements(before, read(bundle).addresses)
    return addresses.readdressed(images, view, instead) if instead else images


async def name_host(pid: int, bundle: Path) -> None:
    """Give the host name of the pod back to its namespace: CRIU has set the one of the dump, in a sandbox that others
    share. The pod's stands in its /etc/hostname. Raises HostNameError, BundleError."""
    facts = await facts_of(bundle)
    # Only containerd's own: a tenant can mount a file there that is never read to its end.
    source = next((it.source for it in facts.mounts if it.destination == "/etc/hostname" and it.kind == "sandbox"), "")
    if not source:
        return
    name = ""
    try:
        name = await asyncio.to_thread(_name_in, source)
        await asyncio.to_thread(namespaces.inside, f"/proc/{pid}/ns/uts", namespaces.UTS, lambda: _set_name(name))
    except OSError as error:
        raise HostNameError(pid=pid, name=name, cause=str(error)) from error


def _name_in(path: str) -> str:
    """The container may have written to it, at any length."""
    with open(path, "rb") as file:
        return file.read(_LONGEST_NAME + 1).decode(errors="replace").strip()


def _set_name(name: str) -> None:
    if name and socket.gethostname() != name:
        socket.sethostname(name)
