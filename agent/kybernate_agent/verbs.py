"""Each verb's way of being done, and what its failure leads to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kybernate.errors import KybernateError, StateLostError
from kybernate_agent import checkpoint, handover, life, sleep, thaw, wake
from kybernate_agent.instance import Condition, Phase, Verb
from kybernate_agent.stage import Stage

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor


async def do(actor: Actor, verb: Verb, stage: Stage, ordered: bool) -> None:
    """Raises AbortedError where it turned out not to be the time, KybernateErrors; all is then as it was."""
    match verb:
        case Verb.START:
            actor.forget_keeper()
            await life.start(actor, stage)
        case Verb.SUSPEND:
            await sleep.suspend(actor, stage, ordered)
        case Verb.PARK:
            await sleep.park(actor, stage)
        case Verb.RESUME:
            await wake.resume(actor, stage)
        case Verb.PROVE:
            await wake.prove(actor, stage)
        case Verb.RESCUE:
            await life.rescue(actor, stage)
        case Verb.RESET:
            await _reset(actor, stage)
        case Verb.ADOPT:
            await handover.adopt(actor, stage)
        case Verb.DISCARD:
            await handover.discard(actor, stage)
        case Verb.LEAVE:
            await handover.leave(actor, stage)
        case Verb.CHECKPOINT:
            await checkpoint.take_copy(actor, stage)
        case Verb.END:
            if actor.services.starter.kubelet:
                await handover.finish(actor, stage)
            else:
                await life.end(actor, stage)
    actor.record.clear_condition("Degraded", _reason(verb))


def _reason(verb: Verb) -> str:
    """Of the condition that says that it failed."""
    return f"{verb.value.capitalize()}Failed"


async def _reset(actor: Actor, stage: Stage) -> None:
    """Refuse the calls that are held."""
    stage.step("reset")
    await actor.traffic.reset()
    if not actor.somebody_waits:
        actor.wake_wanted = ""
    if not actor.policy.down:
        actor.record.event("Warning", "WakeTimeout", f"held calls were reset: {stage.reason}", time.time())


def failed(actor: Actor, verb: Verb, error: KybernateError) -> None:
    """Say it, and when it is tried again."""
    handover.failed(actor, verb, error)
    if isinstance(error, StateLostError):
        wake.lost(actor, error)
    elif isinstance(error, thaw.ThawFailedError):
        thaw.failed(actor, error)
    elif verb == Verb.START:
        life.start_failed(actor, error)
    elif verb == Verb.PARK:
        sleep.park_refused(actor, error)
    elif verb == Verb.RESUME and actor.record.phase == Phase.PARKED:
        wake.restore_failed(actor, error)
    elif verb == Verb.CHECKPOINT:
        actor.record.event("Warning", "CheckpointFailed", str(error), time.time())
    else:
        actor.say(Condition(type="Degraded", status="True", reason=_reason(verb), message=str(error), at=time.time()))
        actor.back_off(verb, min(60.0, 2.0 ** actor.failed(verb)))
