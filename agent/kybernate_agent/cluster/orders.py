"""A person's single order to an instance: the annotation `kybernate.io/order: "<verb> <id>"`, carried out once.

The id of the last one stands in the record with how it went, so an agent that starts anew does not repeat it; one that
was killed in the midst of it does, which is the same.
"""

from __future__ import annotations

from kybernate.api import names
from kybernate.api.gpuinstance import GpuInstance
from kybernate.errors import InvalidError, KybernateError
from kybernate_agent.actor import Actor
from kybernate_agent.instance import Verb

VERBS = {"suspend": Verb.SUSPEND, "park": Verb.PARK, "resume": Verb.RESUME}


class Orders:
    """Which ones are being carried out."""

    def __init__(self) -> None:
        self._under_way: set[tuple[str, str]] = set()

    async def carry_out(self, actor: Actor, instance: GpuInstance) -> None:
        """The order that stands in the object, if it is new. How it went is in the status then."""
        text = instance.metadata.annotations.get(names.ORDER, "").strip()
        verb, _, key = text.partition(" ")
        member = actor.record.member
        if not text or member is None or key == member.order or (actor.record.id, key) in self._under_way:
            return
        self._under_way.add((actor.record.id, key))
        try:
            if verb not in VERBS or not key:
                raise InvalidError(f"{text!r}: expected `<verb> <id>` with one of {', '.join(VERBS)}")
            await actor.order(VERBS[verb], wait=True)
            outcome, message = "done", ""
        except KybernateError as error:
            outcome, message = "refused", str(error)
        finally:
            self._under_way.discard((actor.record.id, key))
        member.order, member.order_verb, member.order_outcome, member.order_message = key, verb, outcome, message
        actor.services.journal.save(actor.record)
        actor.services.changed(actor.record.id)
