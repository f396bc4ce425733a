"""The netfilter rules of one pod: a chain KYBERNATE in table mangle, reached first from PREROUTING, in both families.

    -A PREROUTING -j KYBERNATE                      every interface, lo too
    -A KYBERNATE -m mark --mark MARK -j RETURN      what we send ourselves
    -A KYBERNATE -p tcp -m multiport --dports ... -j NFQUEUE --queue-num 27508

Each change is one transaction of iptables-restore, so the kernel sees the old rules or the new ones and nothing
between. There is one chain per network namespace, hence one constant queue number. NFQUEUE stands without bypass: see
nfqueue.

The rules live in the kernel, not in the agent: they outlast it, and a successor finds them.

Sources: iptables-restore(8), iptables-extensions(8) (NFQUEUE, multiport), nsenter(1).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass

from kybernate.errors import DeadlineError, ExternalError, KybernateError

from . import netlink, nfqueue

CHAIN = "KYBERNATE"
QUEUE_NUMBER = 0x6B74
MARK = 0x6B796265
DEADLINE_SECONDS = 10.0
_LOCK_WAIT_SECONDS = 5  # legacy iptables shares one lock with the whole machine
_MULTIPORT = 15
_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_CLONE_NEWNET = 0x40000000


class RulesError(ExternalError):
    """{netns}: {program} failed: {reason}. Run `kybernate doctor`; it names what netfilter lacks on this machine."""


class RulesDeadlineError(DeadlineError):
    """{netns}: {program} did not end within {seconds} s. Look for another program that holds /run/xtables.lock."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether packets can be held on this machine, and if not, why."""

    works: bool
    reason: str = ""


class Rules:
    """The chain of the pod at path `netns`, for the IP versions in `families`. One change at a time."""

    def __init__(self, netns: str, families: Iterable[int] = (4, 6)) -> None:
        self._netns = netns
        self._families = tuple(families)
        self._jumps: dict[int, int] | None = None

    async def present(self) -> bool:
        """Whether the pod has our rules, in any family. Raises RulesError, RulesDeadlineError."""
        return any((await self._read()).values())

    async def install(self, ports: Iterable[int]) -> None:
        """Make the rules queue TCP segments to `ports`; replaces earlier ones in one step. Idempotent.

        Raises RulesError, RulesDeadlineError; then a family may have the new rules and the other still the old ones.
        """
        wanted = sorted(set(ports))
        jumps = await self._read()

        async def apply(family: int) -> None:
            await self._restore(family, _install_text(wanted, jump=jumps[family] == 0))
            jumps[family] = max(1, jumps[family])

        await _all(apply(family) for family in self._families)

    async def remove(self) -> None:
        """Take chain and jump out. Idempotent. Raises RulesError, RulesDeadlineError."""
        jumps = await self._read()

        async def apply(family: int) -> None:
            if jumps[family]:
                await self._restore(family, _remove_text(jumps[family]))
                jumps[family] = 0

        await _all(apply(family) for family in self._families)

    async def _read(self) -> dict[int, int]:
        """Jumps to the chain per family, read once: afterwards only this object changes them."""
        if self._jumps is None:
            reads = [self._run(family, ["save", "-t", "mangle"], "") for family in self._families]
            saved = await asyncio.gather(*reads)
            counts = [text.splitlines().count(f"-A PREROUTING -j {CHAIN}") for text in saved]
            self._jumps = dict(zip(self._families, counts, strict=True))
        return self._jumps

    async def _restore(self, family: int, text: str) -> None:
        await self._run(family, ["restore", "--noflush", "--wait", str(_LOCK_WAIT_SECONDS)], text)

    async def _run(self, family: int, arguments: list[str], text: str) -> str:
        program = f"{_PROGRAMS[family]}-{arguments[0]}"
        argv = ["nsenter", f"--net={self._netns}", "--", program, *arguments[1:]]
        return await _execute(self._netns, program, argv, text)


def _install_text(ports: list[int], *, jump: bool) -> str:
    # Naming a chain empties it (iptables-restore, also with --noflush), so this replaces whatever it held.
    lines = ["*mangle", f":{CHAIN} - [0:0]", f"-A {CHAIN} -m mark --mark {MARK:#x} -j RETURN"]
    for first in range(0, len(ports), _MULTIPORT):
        some = ",".join(map(str, ports[first : first + _MULTIPORT]))
        lines.append(f"-A {CHAIN} -p tcp -m multiport --dports {some} -j NFQUEUE --queue-num {QUEUE_NUMBER}")
    if jump:
        lines.append(f"-I PREROUTING 1 -j {CHAIN}")
    return "\n".join([*lines, "COMMIT", ""])


def _remove_text(jumps: int) -> str:
    lines = ["*mangle", *[f"-D PREROUTING -j {CHAIN}"] * jumps, f"-F {CHAIN}", f"-X {CHAIN}", "COMMIT", ""]
    return "\n".join(lines)


async def _all(steps: Iterable[Coroutine[None, None, None]]) -> None:
    """Run all steps to their end, then raise the first error: none is left running behind a failed one."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def _execute(netns: str, program: str, argv: list[str], text: str) -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            out, err = await process.communicate(text.encode())
    except TimeoutError:
        raise RulesDeadlineError(netns=netns, program=program, seconds=DEADLINE_SECONDS) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RulesError(netns=netns, program=program, reason=" ".join(err.decode(errors="replace").split())[-500:])
    return out.decode(errors="replace")


async def probe() -> Probe:
    """Try rule and queue in a network namespace made for it, which is gone afterwards."""
    try:
        namespace, queue = await asyncio.to_thread(_scratch_namespace)
    except (OSError, KybernateError) as error:
        return Probe(False, f"queue: {error}")
    try:
        queue.bind()
        await Rules(f"/proc/{os.getpid()}/fd/{namespace}").install([80])
    except (OSError, KybernateError) as error:
        return Probe(False, str(error))
    finally:
        queue.close()
        os.close(namespace)
    return Probe(True)


def _scratch_namespace() -> tuple[int, nfqueue.Queue]:
    """A descriptor of a new network namespace, and a queue in it."""
    made: list[tuple[int, nfqueue.Queue]] = []
    errors: list[Exception] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            if libc.unshare(_CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            queue = nfqueue.Queue(QUEUE_NUMBER)
            made.append((os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), queue))
        except (OSError, netlink.NetlinkError) as error:
            errors.append(error)

    thread = threading.Thread(target=make, name="kybernate-probe")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return made[0]
