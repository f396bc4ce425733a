"""May the kubelet's container be created, and how: a pure function, the table of docs/design/03_cluster.md.

An answer that waits is asked for again when something has changed, for as long as the hook can wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kybernate_agent.instance import Phase


class Action(StrEnum):
    START = "start"  # begin anew
    RESTORE = "restore"
    WAIT = "wait"
    REFUSE = "refuse"
    LOSE = "lose"  # its state should exist and does not: say so, then ask again


@dataclass(frozen=True, slots=True)
class Case:
    """What is known when the hook asks."""

    named: bool  # a GpuInstance says that this pod is the instance, or the journal knows it
    deleting: bool = False
    phase: Phase = Phase.PENDING
    living: bool = False  # a container of it lives, with or without its keeper
    given_up: bool = False
    images: bool = False  # verified images of its epoch exist
    files: bool = False  # the writable layer is there: with the images, or with the container before
    same_pod: bool = True
    portable: bool = False  # all that another pod needs lies with the images
    may_begin_anew: bool = False  # a person, or onStateLost: Start, accepts that its state is lost


@dataclass(frozen=True, slots=True)
class Answer:
    action: Action
    why: str = ""


def admit(case: Case) -> Answer:
    if not case.named:
        return Answer(Action.WAIT, "no GpuInstance says that this pod is an instance")
    if case.deleting:
        return Answer(Action.WAIT, "its GpuInstance is being deleted")
    if case.living:
        return Answer(Action.WAIT, "a container of it lives still")
    if case.phase in (Phase.PENDING, Phase.BACKOFF):
        return Answer(Action.START)
    if case.phase == Phase.LOST:
        if case.may_begin_anew:
            return Answer(Action.WAIT, "what is left of the lost state is being removed")
        return Answer(Action.REFUSE, "its state is lost; see `kubectl describe gi`. spec.startAnew lets it begin anew")
    if case.phase != Phase.PARKED or case.given_up:
        return Answer(Action.WAIT, "its container before is being put in order")
    if not case.images:
        return Answer(Action.LOSE, "it was asleep, and no verified images of it exist")
    if case.same_pod and not case.files and not case.portable:
        return Answer(Action.LOSE, "the writable layer of its container is gone")
    if not case.same_pod and not case.portable:
        return Answer(
            Action.LOSE,
            "its images were made for its own pod: they lack what another one needs, its layer or its volumes",
        )
    return Answer(Action.RESTORE)
