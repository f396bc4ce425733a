"""An instance and the kubelet's probes: what is known of them, which commands are real, when none is under way.

docs/design/03_probes.md tells the whole; traffic.probing answers the probes that come by a connection.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from kybernate import criu
from kybernate_agent import processes
from kybernate_agent.instance import Phase, Verb
from kybernate_agent.keepers import KeeperState
from kybernate_agent.probes import Declared
from kybernate_agent.stage import AbortedError
from kybernate_agent.traffic.probing import PATIENCE_SECONDS

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

ENTERING_SECONDS = 10.0  # in which runc gets a command into a container
LOOK_SECONDS = 0.02
_ON_THE_WAY = (Verb.SUSPEND, Verb.PARK, Verb.RESUME, Verb.RESCUE)


async def learn(actor: Actor, probes: Declared, ready: bool) -> None:
    """What its pod declares, and whether the kubelet finds its container ready. Errors as PodTraffic.declare's."""
    if ready != actor.container_ready:
        actor.container_ready = ready
        actor.poke()
    if probes != actor.record.probes:
        actor.record.probes = probes
        actor.services.journal.save(actor.record)
        if actor.has_traffic:
            await actor.traffic.declare(probes)


def is_carried_out(actor: Actor, pid: int) -> bool:
    """Whether a declared command goes into the container, by the hook with this pid; else it is answered.

    It does wherever the application has its usual life: also before it was taken over, and when its state is lost.
    """
    if actor.record.phase in (Phase.SUSPENDED, Phase.PARKED) or actor.busy in _ON_THE_WAY:
        return False
    actor.entering.add(pid)
    return True


async def no_command(actor: Actor, state: KeeperState, ordered: bool) -> None:
    """Return when nothing that came by exec runs. A declared command gets the time that the kubelet gives it.

    Raises AbortedError where something else does, or one is still on its way in. An order waits for the latter alone.
    """
    record = actor.record
    if not await actor.entering.none(ENTERING_SECONDS):
        raise AbortedError(f"{record.id}: a command is being brought into its container")
    patience = min(record.probes.timeout_seconds, PATIENCE_SECONDS) if record.probes.commands else 0.0
    until = time.monotonic() + patience
    while not ordered:
        try:
            criu.refuse_exec_sessions(record.id, processes.pids_of(state.cgroups), state.init_pid)
        except criu.ExecSessionError as error:
            if time.monotonic() >= until:
                raise AbortedError(f"{record.id}: an exec session is open") from error
            await asyncio.sleep(LOOK_SECONDS)
        else:
            return
