"""`python -m kybernate.lab.product_image [--out FILE]`: the one image that a cluster runs Kybernate from.

    localhost/kybernate:VERSION
      /usr/lib/kybernate   our packages, but this lab
      /opt/wheels          what they need at run time: the part of requirements.lock that pyproject's dependencies lead
                           to, with its hashes
      /usr                 Python, CRIU, and the programs that the agent calls (nsenter, iptables, cp, tar, gzip)

Agent, controller and installer are three commands of it. It is built as the lab builds all images (`images`): no
registry, no builder, the same bytes from the same parts. What the installer puts on a node comes out of this image too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from kybernate.errors import InvalidError, KybernateError
from kybernate.lab import wheels
from kybernate.lab.builds import plain_modes
from kybernate.lab.images import Contents, Image, build, cache

ROOT = Path(__file__).resolve().parents[2]
NAME = "localhost/kybernate"
_PACKAGES = (
    "python3", "libstdc++6", "busybox-static", "coreutils", "criu", "gzip", "iptables", "tar", "util-linux",
)  # fmt: skip
_OURS = (
    "kybernate",
    "agent/kybernate_agent",
    "controller/kybernate_controller",
    "installer/kybernate_installer",
    "shim/kybernate_shim",
)
_LEFT_OUT = ("__pycache__", "*.pyi", "*.proto", "py.typed", "lab")
_NOBODY = 65532
# Reads kubeconfigs, which a pod has none of: its credentials are its service account's. Half of the image otherwise.
_NOT_IN_PODS = ("kubernetes",)
_COMMAND = b"#!/usr/bin/python3\nimport sys\nfrom kybernate.cli.main import main\nsys.exit(main())\n"
_RUNC = b"""#!/bin/sh
# The node's own, in the node's mount namespace: for a pod with hostPID and /opt/kybernate.
exec nsenter --target 1 --mount -- /opt/kybernate/next-runtime "$@"
"""
_PTH = "usr/lib/python3/dist-packages/kybernate.pth"
_IPTABLES = tuple(f"{family}{verb}" for family in ("iptables", "ip6tables") for verb in ("", "-save", "-restore"))


class LockError(InvalidError):
    """{lock}: it has no entry for {package}, which pyproject.toml needs. Make the lock anew (CONTRIBUTING.md)."""


def product_image(root: Path = ROOT, tag: str = "") -> Image:
    """The image of a checkout, out of the cache where it is there; its tag is the version if no other is given.

    Raises LockError, WheelsError, ProgramError.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    needed = [it for it in project["dependencies"] if _name(it) not in _NOT_IN_PODS]
    lock = runtime_lock((root / "requirements.lock").read_text(), needed)
    trees = {
        "usr/lib/kybernate": _our_packages(root),
        "opt/wheels": wheels.installed(_kept(lock), cache()),
    }
    etc = {
        "etc/passwd": f"root:x:0:0::/root:/bin/sh\nkybernate:x:{_NOBODY}:{_NOBODY}::/:/bin/sh\n".encode(),
        "etc/group": f"root:x:0:\nkybernate:x:{_NOBODY}:\n".encode(),
        "etc/nsswitch.conf": b"hosts: files dns\n",
    }
    files: dict[str, Path | bytes] = {
        **etc,
        "usr/bin/kybernate": _COMMAND,
        "usr/bin/runc": _RUNC,
        _PTH: b"/usr/lib/kybernate\n/opt/wheels\n",
    }
    links = {
        "usr/bin/sh": "busybox",
        # The nft back end: our rules are in the pods' namespaces, where nobody mixes it with the other one.
        **{f"usr/sbin/{name}": "xtables-nft-multi" for name in _IPTABLES},
        # containerd writes paths of network namespaces in this way. /run is the node's, but /var/run must not be: the
        # kubelet mounts the pod's token there.
        "var/run/netns": "/run/netns",
    }
    environment = {
        "PATH": "/usr/bin:/usr/sbin:/bin:/sbin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    config = {"Cmd": ["/usr/bin/kybernate", "help"], "Env": [f"{name}={value}" for name, value in environment.items()]}
    contents = Contents(_PACKAGES, files, links, trees, compile_python=True)
    return build(f"{NAME}:{tag or project['version']}", contents, config)


def runtime_lock(lock: str, dependencies: Iterable[str]) -> str:
    """The entries of a lock that these dependencies lead to, as they stand there. Pure.

    uv writes below each entry `# via` whom it is there for. Raises LockError.
    """
    entries = {_name(entry): entry for entry in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]}
    via = re.compile(r"^    #(?: via|  ) +([a-z0-9._-]+)", re.MULTILINE)
    users = {name: set(via.findall(entry)) for name, entry in entries.items()}
    wanted = {_name(dependency) for dependency in dependencies}
    if missing := sorted(wanted - entries.keys()):
        raise LockError(lock="requirements.lock", package=", ".join(missing))
    while more := {name for name, of in users.items() if of & wanted} - wanted:
        wanted |= more
    return "".join(entries[name] for name in sorted(wanted))


def _name(requirement: str) -> str:
    """`Grpcio>=1.85.1` and `grpcio==1.85.1 \\` are both `grpcio`."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")


def _kept(text: str) -> Path:
    """A file with this text in the cache; pip wants one."""
    target = cache() / "locks" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.lock"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=".making-", delete=False) as file:
            file.write(text)
        os.replace(file.name, target)
    return target


def _our_packages(root: Path) -> Path:
    """A folder with our packages, whose name is the hash of what is in it; modes do not depend on this checkout's."""
    target_parent = cache() / "packages"
    target_parent.mkdir(parents=True, exist_ok=True)
    with plain_modes(), tempfile.TemporaryDirectory(dir=target_parent, prefix=".making-") as making:
        fresh = Path(making, "packages")
        for package in _OURS:
            source = root / package
            if source.is_dir():
                shutil.copytree(source, fresh / source.name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        digest = hashlib.sha256()
        for path in sorted(fresh.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
            digest.update(f"{path.relative_to(fresh)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
        target = target_parent / digest.hexdigest()[:32]
        if not target.exists():
            os.replace(fresh, target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev image", description="Build the image that a cluster runs.")
    parser.add_argument("--out", type=Path, help="copy the OCI archive here")
    options = parser.parse_args()
    try:
        image = product_image()
        archive = image.archive
        if options.out:
            archive = options.out.absolute()
            shutil.copyfile(image.archive, archive)
            if "SUDO_UID" in os.environ and os.geteuid() == 0:  # it is of who called ./dev
                os.chown(archive, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))
    except (KybernateError, OSError) as error:
        print(f"image: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, KybernateError) else 1
    print(f"{image.name} {image.digest}\n{archive}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
