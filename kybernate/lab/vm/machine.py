"""One virtual machine: QEMU on an overlay of the base image, plugged into a bridge, entered by ssh.

    FOLDER/disk.qcow2   what it has written: stays when the power is cut
    FOLDER/seed.img     a second disk, made with what is to be in it; its program `start` runs at each boot
    FOLDER/console      what kernel and systemd say
    FOLDER/ssh          the one connection that all commands share: a key exchange is dear where the CPU is emulated

QEMU runs in the network namespace of whoever has the bridge, with FOLDER in its command line; so does ssh. By that both
are found again, whoever started them. QEMU emulates the CPU unless the machine's KVM is the hardware's own.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kybernate.errors import DeadlineError, ExternalError
from kybernate.lab.containerd import CRI_NAMESPACE
from kybernate.lab.images import Image, cache
from kybernate.lab.process import (
    ProgramDeadlineError,
    ProgramError,
    ProgramMissingError,
    argv_of,
    descendants,
    end,
    pids,
    run,
)
from kybernate.lab.vm.image import BaseImage

BOOT_SECONDS = 300.0
"""Ten times what it takes on two cores that emulate two."""
_MIB = 2048
_ENTER = """set -e
tree=$1 image=$2 vm=$3 archives=$4
shift 4
mount -t proc proc "$tree/proc"
mount --rbind /sys "$tree/sys"
mount --rbind /dev "$tree/dev"
mount --bind "$image" "$tree/mnt/image"
mount --bind "$vm" "$tree/mnt/vm"
mount --bind "$archives" "$tree/mnt/archives"
exec chroot "$tree" "$@"
"""
_IMPORT = """set -e
containerd --config /mnt/vm/containerd.toml >/mnt/vm/containerd.log 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon || true' EXIT
until ctr -a /mnt/vm/containerd.sock version >/dev/null 2>&1; do kill -0 $daemon; sleep 0.1; done
for archive; do ctr -a /mnt/vm/containerd.sock -n "$NAMESPACE" images import --local "/mnt/archives/$archive"; done
"""
_CONTAINERD = """version = 2
root = "/mnt/vm/seed/containerd"
state = "/mnt/vm/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "/mnt/vm/containerd.sock"
"""
_PROGRAMS = ("nsenter", "unshare", "sh", "chroot", "qemu-system-x86_64")
_SSH = (
    "BatchMode=yes", "StrictHostKeyChecking=yes", "LogLevel=ERROR", "ConnectTimeout=10", "ServerAliveInterval=10",
    "ServerAliveCountMax=6", "ControlMaster=auto", "ControlPersist=600",
)  # fmt: skip


class QemuEndedError(ExternalError):
    """The virtual machine {name} ended. QEMU said: {said} Its console, {console}, ends: {tail}"""


class BootLateError(DeadlineError):
    """The virtual machine {name} did not answer within {seconds:g} s. Its console, {console}, ends: {tail}"""


@dataclass(frozen=True)
class Plug:
    """Where it is plugged in: the process with the bridge's namespace, the bridge's tap, and the machine's address."""

    namespace_of: int
    tap: str
    address: str
    gateway: str


class VirtualMachine:
    """A virtual machine named `name` with all that it has in `folder`."""

    def __init__(self, folder: Path, name: str, image: BaseImage, plug: Plug) -> None:
        self.folder, self.name, self.image, self.plug = folder, name, image, plug
        self.console = folder / "console"
        self._said = folder / "qemu.log"
        self._process: subprocess.Popen[bytes] | None = None

    def create(self, lay: Callable[[Path], None], images: Sequence[Image] = ()) -> None:
        """Its disks: an empty overlay on the image, and a seed, on which `lay` puts what it likes.

        The seed has the folder `containerd` besides: what containerd knows after it has imported `images`.
        """
        seed = self.folder / "seed"
        seed.mkdir(parents=True)
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/mnt/image/disk.img"]
        run(self._in_tree([*overlay, "/mnt/vm/disk.qcow2"]))
        lay(seed)
        self._import(images)
        with (self.folder / "seed.img").open("wb") as disk:
            disk.truncate(16 << 30)
        words: list[str | Path] = ["mkfs.ext4", "-q", "-L", "seed", "-d", seed, self.folder / "seed.img"]
        run(words, deadline_seconds=300, env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"})
        shutil.rmtree(seed)

    def _import(self, images: Sequence[Image]) -> None:
        """By the containerd of the tools, without emulation."""
        (self.folder / "containerd.toml").write_text(_CONTAINERD)
        words = [
            "env",
            f"NAMESPACE={CRI_NAMESPACE}",
            "sh",
            "-c",
            _IMPORT,
            "sh",
            *(image.archive.name for image in images),
        ]
        run(self._in_tree(words), deadline_seconds=300)

    def start(self) -> None:
        """Switch it on. Returns when it answers. Raises QemuEndedError, BootLateError; then it is off."""
        try:
            self._spawn()
            self._await_boot("")
        except BaseException:
            self.cut_power()
            raise

    def reboot(self) -> None:
        """As a person would. Returns when it answers again. Raises QemuEndedError, BootLateError."""
        before = self.boot_id()
        with contextlib.suppress(ProgramError):  # the connection may end before the command does
            self.run(["systemctl", "reboot"])
        self._await_boot(before)

    def cut_power(self) -> None:
        """What it has not written is lost; the disk stays. Safe to repeat. Raises StuckProcessesError."""
        end_all(self.folder)
        if self._process:
            self._process.wait(30)
            self._process = None
        (self.folder / "ssh").unlink(missing_ok=True)

    def remove(self) -> None:
        """`cut_power`, and the disk, too."""
        self.cut_power()
        shutil.rmtree(self.folder, ignore_errors=True)

    def boot_id(self) -> str:
        return self.run(["cat", "/proc/sys/kernel/random/boot_id"]).strip()

    def run(self, argv: Sequence[str | Path], *, deadline_seconds: float = 60, stdin: bytes | None = None) -> str:
        """Run a program in it and return its output. Raises the errors of `process.run`; ssh's own code is 255."""
        try:
            return run(
                [*self._ssh(), shlex.join(map(str, argv))], deadline_seconds=deadline_seconds, stdin=stdin or b""
            )
        except ProgramError as error:
            program = f"{self.name}: {' '.join(map(str, argv[:4]))}"
            raise ProgramError(program=program, code=error.code, stderr=error.stderr) from error

    def tail(self, characters: int = 2000) -> str:
        """The end of what its console shows."""
        with contextlib.suppress(OSError):
            return self.console.read_text(errors="replace")[-characters:]
        return ""

    def _ssh(self) -> list[str]:
        options = [
            *_SSH,
            f"ControlPath={self.folder}/ssh",
            f"UserKnownHostsFile={self.image.known_hosts}",
            f"IdentityFile={self.image.key}",
        ]
        return ["ssh", "-F", "none", *(word for it in options for word in ("-o", it)), f"root@{self.plug.address}"]

    def _in_tree(self, argv: Sequence[str]) -> list[str | Path]:
        """A program of QEMU's tree; what is mounted for it only it sees."""
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        return [*enter, self.image.tools, self.image.folder, self.folder, cache() / "images", *argv]

    def _spawn(self) -> None:
        argv = ["nsenter", "-t", str(self.plug.namespace_of), "-n", "--", *map(str, self._in_tree(self._qemu()))]
        self.console.unlink(missing_ok=True)
        try:
            with self._said.open("wb") as said:
                self._process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
                )
        except FileNotFoundError as error:
            raise ProgramMissingError(program="nsenter (util-linux)") from error

    def _qemu(self) -> list[str]:
        plug = self.plug
        address = f"ip={plug.address}::{plug.gateway}:255.255.255.0:{self.name}:eth0:off"
        kernel = ["root=/dev/nvme0n1", "rw", "console=ttyS0", "quiet", "net.ifnames=0", address, "mitigations=off"]
        kernel += ["transparent_hugepage=never"]  # khugepaged would take a tenth of an emulated CPU
        mac = "52:54:00:" + ":".join(f"{int(part):02x}" for part in plug.address.split(".")[1:])
        return [
            "qemu-system-x86_64", "-name", str(self.folder), "-M", "q35", *_accelerator(),
            "-m", str(_MIB), "-nodefaults", "-no-user-config", "-display", "none",
            "-kernel", "/mnt/image/vmlinuz", "-append", " ".join([*kernel, f"systemd.hostname={self.name}"]),
            "-drive", "if=none,id=root,file=/mnt/vm/disk.qcow2,format=qcow2,cache=unsafe,discard=unmap",
            "-drive", "if=none,id=seed,file=/mnt/vm/seed.img,format=raw,cache=unsafe,discard=unmap",
            # Two disks of the kind that is built into the kernel would be named in the order in which they are found.
            "-device", "nvme,drive=root,serial=root", "-device", "virtio-blk-pci,drive=seed",
            "-netdev", f"tap,id=net,ifname={plug.tap},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=net,mac={mac},romfile=",
            "-device", "virtio-rng-pci", "-serial", "file:/mnt/vm/console",
        ]  # fmt: skip

    def _await_boot(self, before: str) -> None:
        """Until it answers with another boot id than `before`."""
        limit = time.monotonic() + BOOT_SECONDS
        while True:
            with contextlib.suppress(ProgramError, ProgramDeadlineError):
                if self.boot_id() != before:
                    return
                self._hang_up()  # a machine that goes down may leave a connection that never ends
            if "Kernel panic" in self.tail(100_000) or (self._process and self._process.poll() is not None):
                said = self._said.read_text(errors="replace")[-1000:]
                raise QemuEndedError(name=self.name, said=said, console=self.console, tail=self.tail())
            if time.monotonic() > limit:
                raise BootLateError(name=self.name, seconds=BOOT_SECONDS, console=self.console, tail=self.tail())
            time.sleep(0.2)

    def _hang_up(self) -> None:
        with contextlib.suppress(ProgramError):
            run([*self._ssh()[:-1], "-O", "exit", self._ssh()[-1]])


def end_all(folder: Path) -> None:
    """End QEMU, ssh and the rest of every virtual machine at or below `folder`. Raises StuckProcessesError."""
    end(lambda: descendants(pid for pid in pids() if _is_of(argv_of(pid), folder)))


def _is_of(argv: list[str], folder: Path) -> bool:
    """QEMU has the folder as a word from its first moment on; the ssh that the others share names its connection."""
    if not argv or Path(argv[0]).name not in _PROGRAMS:
        return bool(argv) and argv[0].startswith(f"ssh: {folder}/")
    return any(Path(word).is_relative_to(folder) for word in argv)


def _accelerator() -> list[str]:
    """/dev/kvm alone says nothing: a KVM in software opens, and cannot run a stock kernel.

    One CPU where it is emulated: of two, one may run into what the other one patches in the kernel (int3, then panic).
    """
    if os.access("/dev/kvm", os.W_OK) and any(Path("/sys/module", name).exists() for name in ("kvm_intel", "kvm_amd")):
        return ["-accel", "kvm", "-cpu", "host", "-smp", "2"]
    return ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off", "-smp", "1"]
