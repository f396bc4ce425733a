"""Container images without a registry, a builder, a compiler or a network.

An image is one uncompressed layer in an OCI archive that `ctr images import` takes. Its files come from the installed
packages of this machine (`debian`), from locked Python wheels (`wheels`) and from the caller. The same contents give
the same digest: names are sorted, times and owners are zero. Archives are kept in a cache outside of the tree, under
a name that is the hash of all that went into them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kybernate.lab import debian, wheels
from kybernate.lab.builds import plain_modes
from kybernate.lab.process import run

PAUSE = "localhost/kybernate-pause:1"
_FORMAT = "3"
_KEEP_SECONDS = 24 * 3600
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_ETC: dict[str, Path | bytes] = {
    "etc/passwd": b"root:x:0:0::/root:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
    "etc/nsswitch.conf": b"hosts: files dns\n",
}
_EMPTY_FOLDERS = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "var", "var/tmp", "usr", "usr/bin")


@dataclass(frozen=True)
class Image:
    """An image's name, the archive to import it from, and the digest of its manifest."""

    name: str
    archive: Path
    digest: str


@dataclass
class Contents:
    """What goes into a root file system. Paths inside the image have no leading slash."""

    packages: Sequence[str] = ()
    files: Mapping[str, Path | bytes] = field(default_factory=dict)  # a bytes value is an executable file's text
    links: Mapping[str, str] = field(default_factory=dict)
    trees: Mapping[str, Path] = field(default_factory=dict)
    compile_python: bool = False


def cache() -> Path:
    """$XDG_CACHE_HOME/kybernate or ~/.cache/kybernate."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "kybernate")


def pause_image() -> Image:
    """The image of a pod's sandbox: something that sleeps. containerd ends it by SIGKILL."""
    return build(PAUSE, Contents(["busybox-static"]), {"Entrypoint": ["/bin/busybox", "sleep", "2147483647"]})


def python_image(
    name: str,
    *,
    files: Mapping[str, Path | bytes] | None = None,
    requirements: Path | None = None,
    packages: Sequence[str] = (),
    cmd: Sequence[str] = ("/usr/bin/python3", "-u", "/app.py"),
    env: Mapping[str, str] | None = None,
) -> Image:
    """Python and busybox of this machine, a locked set of wheels, and `files`.

    Raises debian.PackageMissingError, wheels.WheelsError.
    """
    everything: dict[str, Path | bytes] = {**_ETC, **(files or {})}
    needs = ["python3", "busybox-static", "libstdc++6", *packages]
    trees = {"opt/wheels": wheels.installed(requirements, cache())} if requirements else {}
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", **(env or {})}
    if requirements:
        environment.setdefault("PYTHONPATH", "/opt/wheels")
    contents = Contents(needs, everything, _busybox_links(), trees, compile_python=True)
    return build(name, contents, {"Cmd": list(cmd), "Env": [f"{key}={value}" for key, value in environment.items()]})


def build(name: str, contents: Contents, config: Mapping[str, Any]) -> Image:
    """The image with these contents, out of the cache where it is there.

    `config` holds fields of the OCI image configuration's `config` (Cmd, Entrypoint, Env, User, WorkingDir).
    Raises debian.PackageMissingError, ProgramError.
    """
    packages = debian.closure(contents.packages, debian.installed())
    key = _key(name, packages, contents, config)
    folder = cache() / "images"
    slug = re.sub(r"[^a-z0-9.]+", "-", name)
    archive = folder / f"{slug}-{key}.tar"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _forget_old(folder, slug)
        with plain_modes(), tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as making:
            stage = Path(making, "root")
            _stage(stage, packages, contents)
            layer = Path(making, "layer.tar")
            _pack(stage, layer)
            _archive(Path(making, "archive.tar"), layer, name, config)
            os.replace(Path(making, "archive.tar"), archive)
    return Image(name, archive, _digest(archive))


def _forget_old(folder: Path, slug: str) -> None:
    """Archives of the same image with other contents, and what a killed build left, once they are a day old."""
    for old in (*folder.glob(f"{slug}-*.tar"), *folder.glob(".making-*")):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _KEEP_SECONDS:
                shutil.rmtree(old) if old.is_dir() else old.unlink()


def _busybox_links() -> dict[str, str]:
    applets = run(["busybox", "--list"]).split()
    return {f"usr/bin/{applet}": "busybox" for applet in applets if applet not in ("busybox", "[[")}


def _key(name: str, packages: Sequence[debian.Package], contents: Contents, config: Mapping[str, Any]) -> str:
    """The hash of everything that makes the image what it is."""
    files = {path: _sha256(source) for path, source in contents.files.items()}
    versions = [(package.name, package.version) for package in packages]
    trees = {path: str(tree.name) for path, tree in contents.trees.items()}  # a tree's name is the hash of what made it
    parts = [_FORMAT, name, versions, files, dict(contents.links), trees, contents.compile_python, dict(config)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _sha256(source: Path | bytes) -> str:
    return hashlib.sha256(source if isinstance(source, bytes) else source.read_bytes()).hexdigest()


def _stage(stage: Path, packages: Sequence[debian.Package], contents: Contents) -> None:
    """Lay the root file system out in a folder."""
    for folder in _EMPTY_FOLDERS:
        (stage / folder).mkdir(parents=True, exist_ok=True)
    for link, target in debian.merged_links().items():
        (stage / target).mkdir(parents=True, exist_ok=True)
        (stage / link.lstrip("/")).symlink_to(target)
    for source in debian.files(packages):
        _copy(source, stage / str(source).lstrip("/"))
    for path, tree in contents.trees.items():
        shutil.copytree(tree, stage / path, symlinks=True, dirs_exist_ok=True)
    for path, target in contents.links.items():
        if not os.path.lexists(stage / path):
            (stage / path).parent.mkdir(parents=True, exist_ok=True)
            (stage / path).symlink_to(target)
    for path, file in contents.files.items():
        (stage / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, bytes):
            (stage / path).write_bytes(file)
            (stage / path).chmod(0o755)
        else:
            shutil.copyfile(file, stage / path)
            (stage / path).chmod(0o755 if file.stat().st_mode & stat.S_IXUSR else 0o644)
    (stage / "tmp").chmod(0o1777)
    if contents.compile_python:
        _compile(stage, contents.trees)


def _copy(source: Path, target: Path) -> None:
    kind = source.lstat()
    if stat.S_ISDIR(kind.st_mode):
        target.mkdir(parents=True, exist_ok=True)
    elif stat.S_ISLNK(kind.st_mode) or stat.S_ISREG(kind.st_mode):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)


def _compile(stage: Path, trees: Iterable[str]) -> None:
    """Byte code with hashes in place of times: a cold start then measures the program, not the compiler."""
    argv = ["/usr/bin/python3", "-I", "-m", "compileall", "-q", "-j1", "--invalidation-mode", "unchecked-hash"]
    library = (path for path in stage.glob("usr/lib/python3*") if path.is_dir())
    folders = [*library, *(stage / tree for tree in sorted(trees))]
    run([*argv, "-s", str(stage), "-p", "/", *folders], deadline_seconds=300)


def _pack(stage: Path, layer: Path) -> None:
    with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(stage.rglob("*")):
            entry = tar.gettarinfo(path, str(path.relative_to(stage)))
            entry.mtime, entry.uname, entry.gname, entry.uid, entry.gid = 0, "", "", 0, 0
            if entry.islnk():  # a hard link to something staged twice: store it as a file of its own
                entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", path.stat().st_size
            if entry.isreg():
                with path.open("rb") as content:
                    tar.addfile(entry, content)
            else:
                tar.addfile(entry)


def _archive(out: Path, layer: Path, name: str, config: Mapping[str, Any]) -> None:
    """An OCI image layout in a tar file. Source: OCI image specification 1.0, image-layout.md and manifest.md."""
    with layer.open("rb") as content:
        layer_digest = hashlib.file_digest(content, "sha256").hexdigest()
    oci = "application/vnd.oci.image"
    machine = platform.machine()
    image = _json({
        "architecture": _ARCHITECTURES.get(machine, machine), "os": "linux", "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]}, "history": [{"created_by": "kybernate"}],
    })  # fmt: skip
    manifest = _json({
        "schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json",
        "config": _descriptor(f"{oci}.config.v1+json", hashlib.sha256(image).hexdigest(), len(image)),
        "layers": [_descriptor(f"{oci}.layer.v1.tar", layer_digest, layer.stat().st_size)],
    })  # fmt: skip
    digest = hashlib.sha256(manifest).hexdigest()
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    entry = {**_descriptor(f"{oci}.manifest.v1+json", digest, len(manifest)), "annotations": names}
    with tarfile.open(out, "w") as tar:
        _add(tar, "index.json", _json({"schemaVersion": 2, "manifests": [entry]}))
        _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(tar, f"blobs/sha256/{hashlib.sha256(image).hexdigest()}", image)
        _add(tar, f"blobs/sha256/{digest}", manifest)
        info = tarfile.TarInfo(f"blobs/sha256/{layer_digest}")
        info.size = layer.stat().st_size
        with layer.open("rb") as content:
            tar.addfile(info, content)


def _descriptor(media_type: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": size}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _digest(archive: Path) -> str:
    with tarfile.open(archive) as tar:
        index = tar.extractfile("index.json")
        assert index
        return str(json.load(index)["manifests"][0]["digest"])
