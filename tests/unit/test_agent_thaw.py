"""A thaw that misses its deadline: what stands still is called suspended, that is said, and it is woken again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_actor import actor_in
from kybernate_agent import verbs
from kybernate_agent.actor import Actor
from kybernate_agent.decide import decide
from kybernate_agent.instance import Phase, Verb
from kybernate_agent.keepers import KeeperError, KeeperGoneError, KeeperState
from kybernate_agent.look import look
from kybernate_agent.stage import AbortedError, Stage
from kybernate_agent.thaw import ThawFailedError
from kybernate_agent.traffic.pod import Mode

from kybernate.errors import KybernateError

LATE = KeeperError(container="c1", verb="thaw", cause="the cgroup did not become thawed in time")


class Keeper:
    """Freezes at once; a thaw ends as `thaws` says, one after the other, and then well."""

    container = "c1"

    def __init__(self, actor: Actor, *thaws: KybernateError) -> None:
        self.actor, self.thaws, self.frozen = actor, list(thaws), False

    async def state(self) -> KeeperState:
        return KeeperState(state="frozen" if self.frozen else "running", container="c1", keeper_pid=1)

    async def freeze(self) -> None:
        self.frozen = True
        self.actor.call("GET /")  # what came in before the freeze was complete

    async def thaw(self) -> None:
        if self.thaws:
            raise self.thaws.pop(0)
        self.frozen = False


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Actor:
    """Awake and idle. A call comes in at the last moment of its suspend, which the pod's traffic saw."""
    actor = actor_in(tmp_path, Phase.RUNNING)

    async def nothing(*_: Any) -> list[int]:
        return []

    def to(mode: Mode) -> Any:
        async def enter(*_: Any) -> None:
            traffic.mode = mode

        return enter

    traffic: Any = SimpleNamespace(
        mode=Mode.OPEN, watch=to(Mode.WATCHING), hold=to(Mode.HOLDING), release=to(Mode.OPEN), let_probes_end=nothing,
        has_unread=lambda _: bool(actor.wake_wanted), oldest_held_at=lambda: None,
    )  # fmt: skip
    actor._traffic = traffic
    watch: Any = SimpleNamespace(close=lambda: None)
    actor._watch = watch
    monkeypatch.setattr(actor, "own_ports", nothing)
    monkeypatch.setattr("kybernate_agent.processes.pids_of", lambda _: [])
    return actor


def where(actor: Actor) -> tuple[Phase, Mode]:
    return actor.record.phase, actor.traffic.mode


async def perform(actor: Actor, verb: Verb, error: type[KybernateError] | None = None) -> None:
    async with Stage(actor.services.journal, actor.record, verb, "it is time") as stage:
        if error is None:
            await verbs.do(actor, verb, stage, ordered=False)
            return
        with pytest.raises(error) as caught:
            await verbs.do(actor, verb, stage, ordered=False)
        if not isinstance(caught.value, AbortedError):
            verbs.failed(actor, verb, caught.value)


async def test_a_suspend_that_cannot_be_undone_leaves_a_sleeper_that_is_woken(actor: Actor) -> None:
    actor._keeper = Keeper(actor, LATE, LATE)  # type: ignore[assignment]
    await perform(actor, Verb.SUSPEND, ThawFailedError)
    assert where(actor) == (Phase.SUSPENDED, Mode.WATCHING), "whoever calls is heard"
    (said,) = actor.record.conditions
    assert (said.type, said.status, said.reason) == ("Degraded", "True", "ThawFailed")
    assert [(each.type, each.reason) for each in actor.record.events] == [("Warning", "ThawFailed")]

    soon = decide(look(actor, said.at), said.at)
    assert soon.next_verb == Verb.RESUME
    assert soon.next_at is not None
    later = soon.next_at
    assert decide(look(actor, later), later).verb == Verb.RESUME

    await perform(actor, Verb.RESUME, ThawFailedError)
    assert where(actor) == (Phase.SUSPENDED, Mode.WATCHING)
    assert actor.not_before[Verb.RESUME] > later, "later each time"
    await perform(actor, Verb.RESUME)
    assert where(actor) == (Phase.RUNNING, Mode.OPEN)
    assert actor.record.conditions == []


async def test_it_is_woken_though_nobody_called(actor: Actor) -> None:
    """It was awake, and nobody wanted it to sleep."""
    keeper = Keeper(actor, LATE)

    async def freeze() -> None:
        raise LATE

    keeper.freeze = freeze  # type: ignore[method-assign]
    actor._keeper = keeper  # type: ignore[assignment]
    await perform(actor, Verb.SUSPEND, ThawFailedError)
    assert where(actor) == (Phase.SUSPENDED, Mode.WATCHING)
    later = actor.not_before[Verb.RESUME]
    assert decide(look(actor, later), later).verb == Verb.RESUME


async def test_a_suspend_that_is_undone_leaves_it_awake(actor: Actor) -> None:
    actor._keeper = Keeper(actor)  # type: ignore[assignment]
    await perform(actor, Verb.SUSPEND, AbortedError)
    assert where(actor) == (Phase.RUNNING, Mode.OPEN)


async def test_without_its_keeper_it_is_for_the_rescue(actor: Actor) -> None:
    """Which brings back awake what was awake."""
    actor._keeper = Keeper(actor, KeeperGoneError(container="c1", cause="it ended"))  # type: ignore[assignment]
    await perform(actor, Verb.SUSPEND, KeeperGoneError)
    assert actor.record.phase == Phase.RUNNING


async def test_what_failed_is_no_longer_said_once_it_works(actor: Actor) -> None:
    actor._keeper = Keeper(actor)  # type: ignore[assignment]
    verbs.failed(actor, Verb.RESET, LATE)
    assert [each.reason for each in actor.record.conditions] == ["ResetFailed"]

    async def reset() -> int:
        return 0

    actor.traffic.reset = reset  # type: ignore[method-assign]
    await perform(actor, Verb.RESET)
    assert actor.record.conditions == []
