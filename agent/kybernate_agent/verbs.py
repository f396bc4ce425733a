"""Each verb's way of being done, what its failure leads to, and who is told of either."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kybernate.errors import KybernateError, RefusedError, StateLostError
from kybernate_agent import checkpoint, clock, handover, life, sleep, thaw, wake, whole
from kybernate_agent.instance import Condition, Order, Phase, Verb
from kybernate_agent.stage import AbortedError, Stage

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor


log = logging.getLogger(__name__)

TOLD = {
    Verb.START: "Started",
    Verb.SUSPEND: "Suspended",
    Verb.PARK: "Parked",
    Verb.RESUME: "Resumed",
    Verb.RESCUE: "Rescued",
    Verb.ADOPT: "Started",
    Verb.CHECKPOINT: "Checkpointed",
}
SETTLED_BY = {Verb.SUSPEND: (Phase.SUSPENDED, Phase.PARKED), Verb.PARK: (Phase.PARKED,), Verb.RESUME: (Phase.RUNNING,)}
"""In which phases an order is carried out."""


async def perform(actor: Actor, verb: Verb, reason: str) -> None:
    """From its first step to the answer of the order that it was for. Raises nothing but CancelledError."""
    given = actor.orders.current
    ordered = given is not None and given.verb in (verb, Verb.PARK) and verb != Verb.CHECKPOINT
    told = ordered or actor.policy.down or actor.record.leaving is not None
    try:
        try:
            async with Stage(actor.services.journal, actor.record, verb, reason) as stage:
                await do(actor, verb, stage, told)
        finally:
            actor.busy = None
            if actor.record.phase == Phase.RUNNING:
                actor.awake()
    except AbortedError as error:
        if verb == Verb.SUSPEND:
            sleep.suspend_aborted(actor, told)
        if ordered:
            actor.orders.answer(error)
    except KybernateError as error:
        _note_failure(actor, verb, error)
        if verb != Verb.CHECKPOINT:
            actor.orders.answer(error)
    except Exception as error:
        # Nobody foresaw it: it must not end the actor, and the log must say where it came from.
        log.exception("%s: %s", actor.record.id, verb.value)
        foreseen = KybernateError(f"{actor.record.id}: {verb.value}: {type(error).__name__}: {error}")
        _note_failure(actor, verb, foreseen)
        actor.orders.answer(foreseen)
    else:
        actor.worked(verb)
        if (name := TOLD.get(verb)) is not None:
            actor.record.event("Normal", name, f"{reason}; took {stage.seconds:.3f} s", clock.now())
            actor.save()
        _answer(actor, verb, given)


def _answer(actor: Actor, verb: Verb, given: Order | None) -> None:
    """Whoever waits for the order that was `given` when the verb began, or for one that came meanwhile."""
    order = actor.orders.current
    if order is not None and actor.record.phase in SETTLED_BY[order.verb]:
        actor.orders.answer()
    elif verb == Verb.RESUME and order is not None and order is given and order.verb != Verb.RESUME:
        actor.orders.answer(RefusedError(f"{actor.record.id}: a call came and it was woken"))


def _note_failure(actor: Actor, verb: Verb, error: KybernateError) -> None:
    failed(actor, verb, error)
    if isinstance(error, StateLostError):
        actor.callers.fail(error)
    actor.save()


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
        case Verb.KEEP:
            await whole.keep_layer(actor, stage)
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
    if not actor.callers.any:
        actor.wake_wanted = ""
    if not actor.policy.down:
        actor.record.event("Warning", "WakeTimeout", f"held calls were reset: {stage.reason}", clock.now())


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
        actor.record.event("Warning", "CheckpointFailed", str(error), clock.now())
    else:
        actor.say(Condition(type="Degraded", status="True", reason=_reason(verb), message=str(error), at=clock.now()))
        actor.back_off(verb, min(60.0, 2.0 ** min(actor.failed(verb), 10)))
