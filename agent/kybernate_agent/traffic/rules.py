"""The netfilter rules of one pod: two chains in table mangle, reached first from their hooks, in both families.

    -A PREROUTING -j KYBERNATE                      every interface, lo too
    -A OUTPUT -j KYBERNATE-OUT
    -A KYBERNATE -m mark --mark MARK -j RETURN      what we send ourselves
    -A KYBERNATE -p tcp -m mark --mark PROBE_MARK -j TPROXY --on-ip 127.0.0.1 --on-port ...
    -A KYBERNATE -p tcp -m multiport --dports ... -j NFQUEUE --queue-num 27508
    -A KYBERNATE-OUT                                the same with --sports, from the first hold on

The second rule is there where somebody answers probes: a SYN that the listener of the queue has marked comes through
the chain again and is given to another socket than the one at its port. The handshake and all that follows find the
connection by its addresses, so nothing is translated and nothing is tracked.

Each change is one transaction of iptables-restore, so the kernel sees the old rules or the new ones and nothing
between. There is one pair per network namespace, hence one constant queue number. NFQUEUE stands without bypass: see
nfqueue.

The rules live in the kernel, not in the agent: they outlast it, and a successor finds them.

Sources: iptables-restore(8), iptables-extensions(8) (NFQUEUE, multiport), nsenter(1).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kybernate.errors import DeadlineError, ExternalError, KybernateError

from . import netlink, nfqueue

CHAIN = "KYBERNATE"
OUT_CHAIN = "KYBERNATE-OUT"
QUEUE_NUMBER = 0x6B74
MARK = 0x6B796265
PROBE_MARK = 0x6B796270
DEADLINE_SECONDS = 10.0
_LOCK_WAIT_SECONDS = 5  # legacy iptables shares one lock with the whole machine
_MULTIPORT = 15
_HOOKS = {"PREROUTING": CHAIN, "OUTPUT": OUT_CHAIN}
_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_CLONE_NEWNET = 0x40000000
_NOBODY: Mapping[int, int] = MappingProxyType({})


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
    """The chains of the pod at path `netns`, for the IP versions in `families`. One change at a time."""

    def __init__(self, netns: str, families: Iterable[int] = (4, 6)) -> None:
        self._netns = netns
        self._families = tuple(families)
        self._jumps: dict[int, dict[str, int]] | None = None

    async def present(self) -> bool:
        """Whether the pod has our rules, in any family. Raises RulesError, RulesDeadlineError."""
        return any(sum(jumps.values()) for jumps in (await self._read()).values())

    async def install(
        self,
        ports: Iterable[int],
        *,
        leaving: bool = False,
        probed: Iterable[int] = (),
        answerers: Mapping[int, int] = _NOBODY,
    ) -> None:
        """Make the rules queue TCP segments to `ports` and `probed`, and where `leaving` those from `ports`; replaces
        earlier ones in one step. Idempotent. `answerers`: by IP version, the loopback port of the socket that marked
        SYNs are given to.

        Raises RulesError, RulesDeadlineError; then a family may have the new rules and the other still the old ones.
        """
        coming, going = sorted({*ports, *probed}), sorted(set(ports)) if leaving else []
        jumps = await self._read()

        async def apply(family: int) -> None:
            text = _install_text(coming, going, _answer_rules(family, answerers), jumps[family])
            await self._restore(family, text)
            jumps[family] = {hook: max(1, count) for hook, count in jumps[family].items()}

        await _all(apply(family) for family in self._families)

    async def add_leaving(self, ports: Iterable[int]) -> None:
        """Queue segments from `ports` too, beside rules for the same ports. Raises RulesError, RulesDeadlineError.

        Nothing is taken out, so the kernel need not wait for its readers: 10 ms where `install` over other rules takes
        40.
        """
        text = "\n".join(["*mangle", *_queue_rules(OUT_CHAIN, "--sports", sorted(set(ports))), "COMMIT", ""])
        await _all(self._restore(family, text) for family in self._families)

    async def remove(self) -> None:
        """Take chains and jumps out. Idempotent. Raises RulesError, RulesDeadlineError."""
        jumps = await self._read()

        async def apply(family: int) -> None:
            if sum(jumps[family].values()):
                await self._restore(family, _remove_text(jumps[family]))
                jumps[family] = dict.fromkeys(_HOOKS, 0)

        await _all(apply(family) for family in self._families)

    async def _read(self) -> dict[int, dict[str, int]]:
        """Jumps to our chains per family and hook, read once: afterwards only this object changes them."""
        if self._jumps is None:
            reads = [self._run(family, ["save", "-t", "mangle"], "") for family in self._families]
            saved = await asyncio.gather(*reads)
            counts = [_jumps(text.splitlines()) for text in saved]
            self._jumps = dict(zip(self._families, counts, strict=True))
        return self._jumps

    async def _restore(self, family: int, text: str) -> None:
        await self._run(family, ["restore", "--noflush", "--wait", str(_LOCK_WAIT_SECONDS)], text)

    async def _run(self, family: int, arguments: list[str], text: str) -> str:
        program = f"{_PROGRAMS[family]}-{arguments[0]}"
        argv = ["nsenter", f"--net={self._netns}", "--", program, *arguments[1:]]
        return await _execute(self._netns, program, argv, text)


def _jumps(lines: list[str]) -> dict[str, int]:
    return {hook: lines.count(f"-A {hook} -j {chain}") for hook, chain in _HOOKS.items()}


def _install_text(coming: list[int], going: list[int], answer: list[str], jumps: dict[str, int]) -> str:
    # Naming a chain empties it (iptables-restore, also with --noflush), so this replaces whatever it held.
    lines = ["*mangle", *_chain(CHAIN, answer, "--dports", coming), *_chain(OUT_CHAIN, [], "--sports", going)]
    lines += [f"-I {hook} 1 -j {chain}" for hook, chain in _HOOKS.items() if not jumps[hook]]
    return "\n".join([*lines, "COMMIT", ""])


def _chain(name: str, first: list[str], which: str, ports: list[int]) -> list[str]:
    ours = f"-A {name} -m mark --mark {MARK:#x} -j RETURN"
    return [f":{name} - [0:0]", ours, *first, *_queue_rules(name, which, ports)]


def _answer_rules(family: int, answerers: Mapping[int, int]) -> list[str]:
    if family not in answerers:
        return []
    marked = f"-A {CHAIN} -p tcp -m mark --mark {PROBE_MARK:#x} -j TPROXY"
    # The mark has done its work: nobody's routing rules shall see it.
    target = f"--on-ip {_LOOPBACK[family]} --on-port {answerers[family]} --tproxy-mark 0x0/0xffffffff"
    return [f"{marked} {target}"]


def _queue_rules(name: str, which: str, ports: list[int]) -> list[str]:
    groups = [ports[first : first + _MULTIPORT] for first in range(0, len(ports), _MULTIPORT)]
    texts = [",".join(map(str, group)) for group in groups]
    return [f"-A {name} -p tcp -m multiport {which} {text} -j NFQUEUE --queue-num {QUEUE_NUMBER}" for text in texts]


def _remove_text(jumps: dict[str, int]) -> str:
    lines = ["*mangle"]
    for hook, chain in _HOOKS.items():
        if jumps[hook]:
            lines += [*[f"-D {hook} -j {chain}"] * jumps[hook], f"-F {chain}", f"-X {chain}"]
    return "\n".join([*lines, "COMMIT", ""])


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
        await Rules(f"/proc/{os.getpid()}/fd/{namespace}").install([80], answerers={4: 1})
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
