"""What to do next with one instance: a pure function of what is known and the time.

The order of the questions is the priority: an end beats everything, a dead keeper beats sleeping and waking, as does a
network in which nobody hears the calls (what was restored is proven all the same); a call that waits beats a person's
order to sleep, an order beats the idle policy. A decision without a verb says when to ask again; whatever happens in
between (a packet, an order, a process that ends) asks again at once.

Where the kubelet starts containers nothing is decided about a start: one that came is adopted, and until one comes the
instance waits. How it goes when its pod is evicted is `_leaving`.
"""

from __future__ import annotations

from dataclasses import dataclass

from kybernate_agent.instance import Leaving, Phase, Verb, View


@dataclass(frozen=True, slots=True)
class Decision:
    """`verb` now, or, where it is None, `next_verb` at `next_at` unless something happens; ask again at `ask_at`."""

    verb: Verb | None = None
    reason: str = ""
    next_verb: Verb | None = None
    next_at: float | None = None
    ask_at: float | None = None


def decide(view: View, now: float) -> Decision:
    """The next step of an instance. Never blocks, never fails; see the module for the order of the questions."""
    if view.deleting:
        return _now_or_later(view, Verb.END, "its workload was deleted", now)
    if view.offered:
        return _now_or_later(view, Verb.ADOPT, "its container was started", now)
    if view.kubelet and view.phase in (Phase.PENDING, Phase.BACKOFF):
        return Decision()
    if view.phase in (Phase.PENDING, Phase.BACKOFF):
        return _now_or_later(view, Verb.START, "not started yet", now)
    if view.phase == Phase.LOST and view.anew:
        return _now_or_later(view, Verb.DISCARD, "its state is lost, and it begins anew", now)
    if view.phase in (Phase.LOST, Phase.ENDED):
        if view.held_since is not None:
            return _now_or_later(view, Verb.RESET, "its state is lost", now)
        return Decision(ask_at=view.deaf_until)
    if not view.keeper_alive:
        return _gone(view, now) if view.kubelet else _without_keeper(view, now)
    if view.leaving:
        return _leaving(view, view.leaving, now)
    prove_at = _prove_at(view)
    if prove_at is not None and now >= prove_at:
        return Decision(Verb.PROVE, "it has lived since its restore")
    if view.deaf_until is not None:
        return _ask_by(Decision(ask_at=prove_at), view.deaf_until)
    if (overdue := _overdue(view, now)) is not None:
        return overdue
    if view.copy_wanted and not view.wake_wanted and not view.ending:
        return Decision(Verb.CHECKPOINT, "a checkpoint was asked for")
    if view.phase in (Phase.SUSPENDED, Phase.PARKED):
        return _asleep(view, now)
    return _awake(view, now)


def _now_or_later(view: View, verb: Verb, reason: str, now: float, at: float = 0.0) -> Decision:
    """`verb` at `at`, or when its back-off has passed, whichever is later."""
    at = max(at, view.not_before.get(verb, 0.0))
    if now >= at:
        return Decision(verb, reason)
    return Decision(next_verb=verb, next_at=at, ask_at=at)


def _without_keeper(view: View, now: float) -> Decision:
    """Processes that live are rescued; images are restored; one that ran and ended is started again.

    A sleeper that is gone without anybody having ended it is for RESCUE too: it finds images, or says StateLost.
    """
    if view.killed and not view.processes_alive:
        return _now_or_later(view, Verb.START, "its container was ended from outside", now)
    if view.processes_alive or view.phase != Phase.RUNNING:
        return _now_or_later(view, Verb.RESCUE, "its keeper died", now)
    if view.unproven:
        return _now_or_later(view, Verb.RESCUE, "it ended right after its restore", now)
    return _now_or_later(view, Verb.START, "its container ended", now)


def _gone(view: View, now: float) -> Decision:
    """The same where the kubelet makes the next container: what lives is made safe, what was a state is kept for it."""
    if view.given_up:
        return _now_or_later(view, Verb.DISCARD, "its state was given up", now)
    if view.processes_alive:
        return _now_or_later(view, Verb.RESCUE, "its keeper died", now)
    if view.half_restored:  # the kubelet's next container waits for it
        return _now_or_later(view, Verb.RESCUE, "its keeper died while it was restored", now)
    if view.layer_outside:
        return _now_or_later(view, Verb.KEEP, "its container is over, and the kubelet makes the next", now)
    if view.phase == Phase.PARKED:
        return _overdue(view, now) or Decision(ask_at=_timeout(view))
    if view.phase == Phase.RUNNING and view.unproven and not view.killed:
        return _now_or_later(view, Verb.RESCUE, "it ended right after its restore", now)
    return _now_or_later(view, Verb.DISCARD, "its container ended", now)


def _leaving(view: View, leaving: Leaving, now: float) -> Decision:
    """containerd told it to end: parked first, or woken first. What passes is tried again, while there is time."""
    if leaving.wake:
        if view.phase == Phase.RUNNING or leaving.failed:
            return Decision(Verb.LEAVE, "awake, it is told to end")
        return Decision(Verb.RESUME, "it is to end gracefully")
    if view.phase == Phase.PARKED or leaving.failed or (view.phase == Phase.RUNNING and now >= leaving.until):
        return Decision(Verb.LEAVE, "its pod goes")
    if view.phase == Phase.SUSPENDED and leaving.again:
        return Decision(Verb.RESUME, "it has to run before it can be parked")
    if view.phase == Phase.SUSPENDED:
        return Decision(Verb.PARK, "its pod goes, its state stays")
    until = leaving.at + leaving.drain
    if _in_flight(view, now) and now < until:
        return Decision(next_verb=Verb.SUSPEND, next_at=until, ask_at=min(until, now + 0.1))
    return _now_or_later(view, Verb.SUSPEND, "its pod goes, its state stays", now)


def _in_flight(view: View, now: float) -> bool:
    return view.in_flight_since is not None and now < view.in_flight_since + view.policy.max_in_flight


def _timeout(view: View) -> float | None:
    """When the oldest call that is held is refused."""
    return None if view.held_since is None else view.held_since + view.policy.wake_timeout


def _overdue(view: View, now: float) -> Decision | None:
    if view.held_since is not None and (view.policy.down or view.fenced):
        return _now_or_later(view, Verb.RESET, "calls do not wake it: " + _why_down(view), now)
    if view.held_since is not None and now >= view.held_since + view.policy.wake_timeout:
        return _now_or_later(view, Verb.RESET, f"a call was held for {view.policy.wake_timeout:g} s, wake.timeout", now)
    return None


def _why_down(view: View) -> str:
    return "another pod is the instance" if view.fenced else f"spec.state is {view.policy.state}"


def _asleep(view: View, now: float) -> Decision:
    timeout = _timeout(view)
    if view.policy.down or view.fenced:
        if view.phase == Phase.SUSPENDED and view.policy.state == "Parked":
            return _now_or_later(view, Verb.PARK, "spec.state is Parked", now)
        return Decision()
    if view.wake_wanted or view.policy.up or (view.order and view.order.verb == Verb.RESUME):
        reason = "a call came" if view.wake_wanted else "ordered" if view.order else "it is to be awake"
        return _ask_by(_now_or_later(view, Verb.RESUME, reason, now), timeout)
    if view.phase == Phase.SUSPENDED:
        if view.order and view.order.verb == Verb.PARK:
            return _ask_by(_now_or_later(view, Verb.PARK, "ordered", now), timeout)
        if view.policy.park_after is not None:
            at = view.since + view.policy.park_after
            return _ask_by(
                _now_or_later(view, Verb.PARK, f"suspended for {view.policy.park_after:g} s", now, at), timeout
            )
    return Decision(ask_at=timeout)


def _ordered_down_since(view: View) -> float | None:
    if view.order and view.order.verb in (Verb.SUSPEND, Verb.PARK):
        return view.order.at
    return max(view.down_since, view.since) if view.policy.down else None


def _ask_by(decision: Decision, at: float | None) -> Decision:
    if decision.verb is not None or at is None:
        return decision
    ask = at if decision.ask_at is None else min(at, decision.ask_at)
    return Decision(None, decision.reason, decision.next_verb, decision.next_at, ask)


def _prove_at(view: View) -> float | None:
    """When what it came from may go; None: it came from nothing, or it sleeps."""
    if view.phase != Phase.RUNNING or not view.unproven:
        return None
    return max(view.prove_at, view.not_before.get(Verb.PROVE, 0.0))


def _awake(view: View, now: float) -> Decision:
    prove_at = _prove_at(view)
    if view.ending:  # frozen it could not do what it has to do at its end
        return Decision(ask_at=prove_at)
    in_flight = _in_flight(view, now)
    if (since := _ordered_down_since(view)) is not None:
        until = since + view.policy.drain_timeout
        if not in_flight or now >= until:
            return _now_or_later(view, Verb.SUSPEND, "ordered", now)
        return Decision(next_verb=Verb.SUSPEND, next_at=until, ask_at=min(until, now + view.sample_seconds))
    ask = now + view.sample_seconds
    if prove_at is not None:
        ask = min(ask, prove_at)
    if view.policy.suspend_after is None or view.policy.up:
        return Decision(ask_at=ask if view.policy.target_in_flight else prove_at)
    if in_flight or view.starting:
        return Decision(ask_at=ask)
    at = max(view.last_activity, view.since) + view.policy.suspend_after
    reason = f"idle for {view.policy.suspend_after:g} s"
    decision = _now_or_later(view, Verb.SUSPEND, reason, now, at)
    return _ask_by(decision, ask)
