"""What the hook hears when a container is told to end, and what is remembered of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_actor import UID, actor_in
from kybernate_agent.cluster.objects import Fate
from kybernate_agent.cluster.questions import ANSWER_SECONDS, Questions
from kybernate_agent.config import ClusterConfig
from kybernate_agent.instance import Phase
from kybernate_agent.look import look

DELETED, EVICTED = Fate(True, False, 60), Fate(True, True, 60)


def questions(fate: Fate) -> Questions:
    """About pods that are gone, of which it is known how they went: no API server is asked."""
    source: Any = SimpleNamespace(gone_pods={UID: fate})
    nobody: Any = None
    return Questions(source, nobody, nobody, ClusterConfig(), nobody)


def soon() -> float:
    return time.monotonic() + 60


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED])
async def test_one_that_is_evicted_leaves_with_its_state(tmp_path: Path, phase: Phase) -> None:
    actor = actor_in(tmp_path, phase)
    assert await questions(EVICTED).terminate(actor, 15, soon()) == "park"
    [known] = actor.services.journal.records()
    assert known.leaving is not None
    assert bool(known.wakes) == (phase == Phase.RUNNING)


async def test_a_hook_that_knows_no_end_of_its_patience_is_answered_alike(tmp_path: Path) -> None:
    assert await questions(EVICTED).terminate(actor_in(tmp_path, Phase.RUNNING), 15, math.inf) == "park"


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED])
async def test_one_that_was_told_to_end_meanwhile_is_not_parked_as_it_ends(tmp_path: Path, phase: Phase) -> None:
    actor = actor_in(tmp_path, phase)
    assert await questions(EVICTED).terminate(actor, 15, time.monotonic() + ANSWER_SECONDS / 2) == "end"
    assert actor.record.leaving is None
    assert not actor.record.wakes


async def test_a_state_is_given_up_however_late_the_question_is_heard(tmp_path: Path) -> None:
    actor = actor_in(tmp_path, Phase.PARKED)
    assert await questions(DELETED).terminate(actor, 15, time.monotonic() - 5) == "end"
    [known] = actor.services.journal.records()
    assert known.given_up


async def test_one_whose_object_is_deleted_hears_the_signal(tmp_path: Path) -> None:
    """Its end waits for its container's: a signal that is kept from it would cost it its whole grace."""
    actor = actor_in(tmp_path, Phase.RUNNING)
    actor.deleting = True
    assert await questions(EVICTED).terminate(actor, 15, soon()) == "end"
    assert actor.record.leaving is None


@pytest.mark.parametrize(("fate", "ends"), [(DELETED, True), (Fate(False, False, 60), True), (EVICTED, False)])
async def test_one_that_has_heard_the_signal_goes_to_sleep_no_more(tmp_path: Path, fate: Fate, ends: bool) -> None:
    actor = actor_in(tmp_path, Phase.RUNNING)
    await questions(fate).terminate(actor, 15, soon())
    assert look(actor, time.time()).ending == ends
