"""What a virtual machine starts from: QEMU, a kernel and a disk, made once out of Debian packages.

    $XDG_CACHE_HOME/kybernate/vm/<key>/
      tools/         a small tree with QEMU (the machine's own may be one that crashes the guest, as 7.2 does) and the
                     disk's containerd: it imports images here in a tenth of the time that it takes in the machine
      vmlinuz        Debian's kernel for clouds; ext4 and NVMe are built in, so no initrd is needed
      disk.img       systemd, sshd, containerd, runc, CNI plugins; virtual machines write into overlays on it
      key            logs in as root; `known_hosts` has the machine's own key

The archive is the one that apt on this machine is configured for. The key is the hash of this module, so a changed
recipe is another image. It is made beside its place and renamed, by one process at a time. The disk knows nothing of
Kubernetes: whoever starts it gives it a second disk, the seed, whose program `start` runs at each boot.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kybernate.errors import ExternalError
from kybernate.lab.builds import alone
from kybernate.lab.images import cache
from kybernate.lab.process import ProgramError, run

CHECKOUT = Path(__file__).resolve().parents[3]
SUITE = "trixie"
SEED = "/seed"
"""Where the second disk is mounted in the virtual machine."""
_TOOLS = ("qemu-system-x86", "qemu-utils", "containerd")
_TOOL_FOLDERS = ("image", "vm", "archives")
"""Below /mnt of the tools: where a virtual machine's files are shown to them."""
_GUEST = (
    "systemd", "systemd-sysv", "dbus", "udev", "kmod", "mount", "procps", "iproute2", "iptables", "openssh-server",
    "runc", "containerd", "containernetworking-plugins",
)  # fmt: skip
_KERNEL = "linux-image-cloud-amd64"
_SECONDS = 900.0
_KEEP_SECONDS = 24 * 3600
_MASKED = (
    "systemd-networkd-wait-online.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
    "e2scrub_all.timer", "systemd-firstboot.service",
)  # fmt: skip
_NO_DOCS = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")]
# Only unpacked, with the apt of the machine that builds: as an installed package it wants an initrd to be made.
_UNPACK_KERNEL = f"""set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" LC_ALL=C.UTF-8
cd "$1/var/tmp"
apt-get download -qq "$(apt-cache depends --important {_KERNEL} | sed -n 's/^ *Depends: //p' | head -n 1)"
dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x -C "$1" --keep-directory-symlink ./boot ./usr/lib/modules
rm linux-image-*.deb
"""
_FILES = {
    "etc/fstab": f"LABEL=root / ext4 rw,noatime 0 0\nLABEL=seed {SEED} ext4 rw,noatime 0 0\n",
    "etc/systemd/system/seed.service": f"""[Unit]
RequiresMountsFor={SEED}
After=systemd-networkd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={SEED}/start
[Install]
WantedBy=multi-user.target
""",
    # What does not end by SIGTERM would hold a reboot for 90 seconds.
    "etc/systemd/system.conf.d/vm.conf": "[Manager]\nDefaultTimeoutStopSec=10s\n",
    "etc/systemd/journald.conf.d/vm.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=50M\n",
    "etc/ssh/sshd_config.d/vm.conf": "HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\nMaxSessions 200\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/machine-id": "",
    "etc/resolv.conf": "",
}


class NoArchiveError(ExternalError):
    """apt on this machine has no Debian archive among its sources; the virtual machine is made of Debian's packages."""


class MakeError(ExternalError):
    """The image of the virtual machine could not be made: {reason}"""


class ArchitectureError(ExternalError):
    """Virtual machines are made for x86-64 alone; this machine is {machine}."""


@dataclass(frozen=True)
class BaseImage:
    """The files of an image that was made."""

    folder: Path

    @property
    def tools(self) -> Path:
        return self.folder / "tools"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"


def base_image(say: Callable[[str], None] = lambda line: None) -> BaseImage:
    """The image, made if it is not there: a minute or two. Raises NoArchiveError, MakeError, ArchitectureError."""
    if platform.machine() != "x86_64":
        raise ArchitectureError(machine=platform.machine())
    target = cache() / "vm" / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:32]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target.parent, target.parent, say):
            _forget_old(target.parent)
            if not target.exists():  # another one may have made it while this one waited
                say("makes the image of the virtual machine (once, a minute or two)")
                try:
                    _make(target)
                except ProgramError as error:
                    raise MakeError(reason=f"{error.program}: {error.stderr[-1500:]}") from error
    return BaseImage(target)


def _forget_old(folder: Path) -> None:
    """Images of other recipes go after a day. With the lock held nobody makes one."""
    for old in folder.glob("[0-9a-f]*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _KEEP_SECONDS:
                shutil.rmtree(old)


def _make(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as making:
        fresh = Path(making, "image")
        fresh.mkdir(mode=0o700)
        image = BaseImage(fresh)
        _tree(image.tools, _TOOLS)
        for name in _TOOL_FOLDERS:
            (image.tools / "mnt" / name).mkdir()
        root = Path(making, "root")
        _tree(root, _GUEST, [f"--customize-hook={_UNPACK_KERNEL}"])
        shutil.copy(next(root.glob("boot/vmlinuz-*")), image.kernel)
        shutil.rmtree(root / "boot")
        _furnish(root, image)
        with image.disk.open("wb") as disk:
            disk.truncate(16 << 30)
        run(["mkfs.ext4", "-q", "-L", "root", "-d", root, image.disk], deadline_seconds=_SECONDS, env=_sbin())
        image.disk.chmod(0o400)
        os.replace(fresh, target)


def _tree(folder: Path, packages: Sequence[str], more: Sequence[str] = ()) -> None:
    """A Debian tree with these packages."""
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(packages)}"]
    argv += ['--aptopt=APT::Install-Recommends "false"', *(f"--aptopt={line}" for line in _apt_options()), *_NO_DOCS]
    run([*argv, *more, SUITE, folder, "-"], stdin=_sources(), deadline_seconds=_SECONDS, env=_sbin())


def _sources() -> bytes:
    """The archive of this machine, for our suite; Ubuntu's has none of it. Raises NoArchiveError."""
    ask = '. "$1/dev.d/archive.sh"; [ "$(os_release ID)" != debian ] || archive_entry "$(own_suite)" "$2"'
    if said := run(["sh", "-c", ask, "sh", CHECKOUT, SUITE]).strip():
        return f"{said}\n".encode()
    raise NoArchiveError


def _apt_options() -> list[str]:
    """apt's proxies and checks on this machine."""
    known = ("acquire::check-", "acquire::http", "acquire::retries")
    return [line for line in run(["apt-config", "dump"]).splitlines() if line.lower().startswith(known)]


def _furnish(root: Path, image: BaseImage) -> None:
    """Keys, our files, and which services run."""
    for path, text in _FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).unlink(missing_ok=True)
        (root / path).write_text(text)
    (root / SEED.strip("/")).mkdir()
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    for old in root.glob("etc/ssh/ssh_host_*"):
        old.unlink()
    for key in (image.key, root / "etc/ssh/ssh_host_ed25519_key"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key])
    image.key.with_suffix(".pub").rename(root / "root/.ssh/authorized_keys")
    image.known_hosts.write_text(f"* {(root / 'etc/ssh/ssh_host_ed25519_key.pub').read_text()}")
    for argv in (
        ["depmod", next(root.glob("usr/lib/modules/*")).name],
        ["systemctl", "--quiet", "enable", "systemd-networkd", "ssh", "seed"],
        ["systemctl", "--quiet", "disable", "containerd"],
        ["systemctl", "--quiet", "mask", *_MASKED],
    ):
        run(["chroot", root, *argv], env=_sbin())


def _sbin() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
