"""What is true after the agent was away: a pure comparison of the journal, the keeper and the store.

The keeper is the truth about processes, the store about images, the journal about intentions. A copy that lives always
wins: images beside living processes are leftovers of a step that was cut short (a dump that was committed and then
vetoed, or images that wait for the restored application to have lived).
"""

from __future__ import annotations

from dataclasses import dataclass

from kybernate_agent.instance import Phase, Verb


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found. `keeper` is its state, None where it is gone; `epochs` are those of verified manifests."""

    phase: Phase
    epoch: int
    unproven: int
    verb: Verb | None  # in flight when the agent went away
    step: str
    keeper: str | None
    processes_alive: bool
    epochs: tuple[int, ...]
    kubelet: bool = False  # the kubelet starts its containers
    lived: bool = False  # it ran for long enough to be proven, and then ended: so says its keeper


@dataclass(frozen=True, slots=True)
class Verdict:
    """The phase to go on from, and what to put in order first."""

    phase: Phase
    epoch: int
    unproven: int = 0
    retire: tuple[int, ...] = ()
    wake: bool = False  # it was on its way up
    message: str = ""


LOST_IN_MEMORY = "it slept in memory, and its processes are gone (did the node start anew?)"
SETTLED = ("created", "running", "frozen", "parked", "awaiting-restore")


def recover(found: Evidence) -> Verdict:
    """Where to go on. `found.keeper` must be settled (one of SETTLED) or None."""
    waking = found.verb in (Verb.RESUME, Verb.RESCUE)
    if found.keeper in ("created", "running"):
        return _living(found, Phase.RUNNING)
    if found.keeper == "frozen":
        living = _living(found, Phase.SUSPENDED)
        # An awake one stood still for a copy only. Without a verb: the agent was told to end in the midst of it.
        copied = found.verb in (None, Verb.CHECKPOINT) and found.phase == Phase.RUNNING
        return Verdict(living.phase, living.epoch, living.unproven, living.retire, wake=waking or copied)
    if found.keeper in ("parked", "awaiting-restore"):
        return _images(found, waking or (found.keeper == "awaiting-restore" and not found.kubelet))
    if found.processes_alive:
        living = _living(found, found.phase)
        message = "its keeper died, its processes live"
        return Verdict(found.phase, living.epoch, living.unproven, living.retire, message=message)
    if found.phase == Phase.PENDING or found.verb == Verb.START:
        return Verdict(Phase.PENDING, found.epoch, retire=found.epochs)
    if _ran(found):
        return Verdict(Phase.BACKOFF, found.epoch, retire=found.epochs, message="its container ended meanwhile")
    if found.phase in (Phase.LOST, Phase.BACKOFF, Phase.ENDED) and found.verb is None:
        return Verdict(found.phase, found.epoch)
    if found.kubelet and not found.epochs and found.phase in (Phase.RUNNING, Phase.SUSPENDED):
        # As a kubelet treats a container that crashed: it begins anew. Whoever slept in memory is said to be lost.
        message = "its container ended meanwhile" if found.phase == Phase.RUNNING else LOST_IN_MEMORY
        return Verdict(Phase.PENDING, found.epoch, message=message)
    return _images(found, waking)


def _ran(found: Evidence) -> bool:
    """It was awake when it ended, and its life had gone on: its images, if any are left, are of long ago."""
    if found.verb == Verb.RESUME and found.phase in (Phase.RUNNING, Phase.PARKED):
        return found.lived  # restored, and nobody was there to say so
    proven = not found.unproven or found.verb == Verb.PROVE or found.lived
    return proven and found.phase == Phase.RUNNING and found.verb in (None, Verb.PROVE, Verb.SUSPEND)


def _living(found: Evidence, phase: Phase) -> Verdict:
    """Processes live. Images they came from stay until they have lived; any others were never theirs to keep."""
    keep = found.unproven or (found.epoch if found.verb == Verb.RESUME and found.phase == Phase.PARKED else 0)
    keep = keep if keep in found.epochs else 0
    retire = tuple(e for e in found.epochs if e != keep)
    # Epochs are never used twice, also not that of a dump that was committed and then undone.
    epoch = max((found.epoch, *found.epochs))
    return Verdict(phase, epoch, unproven=keep, retire=retire)


def _images(found: Evidence, wake: bool) -> Verdict:
    """No processes. The newest verified images are the state; without any it is lost, and that is said."""
    if not found.epochs:
        return Verdict(Phase.LOST, found.epoch, message="it was asleep, and no verified images of it exist")
    newest = max(found.epochs)
    if newest < found.epoch:
        message = f"images of epoch {newest} exist, but the instance had come to epoch {found.epoch}"
        return Verdict(Phase.LOST, found.epoch, message=message)
    return Verdict(Phase.PARKED, newest, retire=tuple(e for e in found.epochs if e != newest), wake=wake)
