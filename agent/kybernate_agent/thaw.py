"""The thaw, and what it means when it misses its deadline.

The kernel may take its time, or somebody may hold a cgroup above the container's frozen. Then processes stand still,
whatever brought them there: a wake, a freeze that is undone, a copy. So the instance counts as suspended, which it is;
that is said; and it is woken again, later each time, until it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kybernate.errors import ExternalError, KybernateError
from kybernate_agent import clock
from kybernate_agent.instance import Condition, Phase, Verb
from kybernate_agent.keepers import KeeperGoneError

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

BACK_OFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
REASON = "ThawFailed"


class ThawFailedError(ExternalError):
    """{instance} stands still and could not be thawed: {cause}. It counts as suspended; the thaw is tried again."""


async def thaw(actor: Actor) -> None:
    """Let the processes run. Raises ThawFailedError; it is suspended then, and wanted awake. Raises KeeperGoneError:
    what becomes of it is for the one who rescues it to say.
    """
    record = actor.record
    try:
        await actor.keeper.thaw()
    except KeeperGoneError:
        raise
    except KybernateError as error:
        if record.phase != Phase.SUSPENDED:
            record.enter(Phase.SUSPENDED, clock.now())
        actor.call("it could not be thawed")
        raise ThawFailedError(instance=record.id, cause=str(error)) from error
    record.clear_condition("Degraded", REASON)


def failed(actor: Actor, error: ThawFailedError) -> None:
    """Say it, and when it is tried again."""
    failures = actor.failed(Verb.RESUME)
    actor.say(Condition(type="Degraded", status="True", reason=REASON, message=str(error), at=clock.now()))
    actor.back_off(Verb.RESUME, BACK_OFF_SECONDS[min(failures, len(BACK_OFF_SECONDS) - 1)])
