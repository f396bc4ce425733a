"""The network of an instance's pod, held as its phase wants it: open while it runs, watched or held while it sleeps.

It is taken up when a container is, and when the agent starts. Where that does not work (another program has the queue,
the kernel refuses the rules) nobody hears a call, so it is said and tried again, later each time. Until then nothing
is decided about the instance but its end: it neither goes to sleep nor wakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kybernate.errors import ExternalError, KybernateError
from kybernate_agent import clock
from kybernate_agent.instance import Condition, Phase
from kybernate_agent.traffic.pod import Mode

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

PAUSES_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
REASON = "NoTraffic"


class NoTrafficError(ExternalError):
    """{instance}: its traffic cannot be seen to: {cause}. No call wakes it and it does not sleep; it is tried again."""


async def see_to(actor: Actor) -> None:
    """Take up the network where that is to be done and its time has come, and keep callers out where they are to be."""
    if not _is_deaf(actor):
        actor.deaf_until, actor.deaf_tries = None, 0
        await _keep_callers_out(actor)
    elif actor.deaf_until is None or clock.now() >= actor.deaf_until:
        try:
            await _take_up(actor)
        except (KybernateError, OSError) as error:
            _failed(actor, NoTrafficError(instance=actor.record.id, cause=str(error)))
        else:
            actor.deaf_until, actor.deaf_tries = None, 0
            actor.record.clear_condition("Degraded", REASON)
            await _keep_callers_out(actor)
            actor.services.changed(actor.record.id)


def _is_deaf(actor: Actor) -> bool:
    """It has a container of which nobody hears the calls."""
    if not actor.keeper_watched or actor.deleting or actor.offer or not actor.may:
        return False
    asleep = actor.record.phase in (Phase.SUSPENDED, Phase.PARKED)
    if not actor.has_traffic:
        return asleep or actor.record.phase in (Phase.RUNNING, Phase.LOST)
    return asleep and actor.traffic.mode is Mode.OPEN


async def _take_up(actor: Actor) -> None:
    """Raises the errors of PodTraffic, OSError; rules are as before then, and it is deaf."""
    ports = actor.record.pod.held_ports
    await actor.open_traffic()
    try:
        if actor.record.phase == Phase.SUSPENDED:
            await actor.traffic.watch(ports)
            # What came while nobody listened was dropped and comes again; what came before lies in the sockets.
            if actor.traffic.has_unread(actor.record.pod.unread):
                actor.call("data arrived while no agent ran")
        elif actor.record.phase == Phase.PARKED:
            await actor.traffic.hold(ports)
        else:  # what is lost is called in vain: better refused by the kernel than never answered
            await actor.traffic.release()
    except BaseException:
        await actor.shut_traffic()
        raise


def _failed(actor: Actor, error: NoTrafficError) -> None:
    pause = PAUSES_SECONDS[min(actor.deaf_tries, len(PAUSES_SECONDS) - 1)]
    actor.deaf_until, actor.deaf_tries = clock.now() + pause, actor.deaf_tries + 1
    actor.say(Condition(type="Degraded", status="True", reason=REASON, message=str(error), at=clock.now()))
    actor.orders.answer(error)
    actor.services.changed(actor.record.id)


async def _keep_callers_out(actor: Actor) -> None:
    """Ordered to stay asleep in memory: calls must not reach its sockets, they are refused; until it may wake again."""
    record = actor.record
    if record.phase != Phase.SUSPENDED or not actor.has_traffic:
        return
    try:
        if actor.policy.down and actor.traffic.mode is Mode.WATCHING:
            await actor.traffic.hold(record.pod.held_ports)
        elif not actor.policy.down and actor.traffic.mode is Mode.HOLDING and record.leaving is None:
            await actor.traffic.watch(record.pod.held_ports)
    except KybernateError as error:
        actor.say(Condition(type="Degraded", status="True", reason="Rules", message=str(error), at=clock.now()))
