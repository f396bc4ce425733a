"""What the controller remembers of one workload between two looks."""

from __future__ import annotations

from kybernate_controller.known import BELIEVED_SECONDS, YOUNG_SECONDS, Known


def look(known: Known, now: float, *shown: str, generation: int = 1) -> None:
    known.look(generation, now, set(shown))


def test_a_refusal_is_tried_again_after_a_while() -> None:
    known = Known()
    look(known, 100.0, "p0")
    known.refuse_resize("p0", "quota")
    assert known.again_in(100.0) == BELIEVED_SECONDS
    look(known, 100.0 + BELIEVED_SECONDS, "p0")
    assert known.findings.unsized == {}


def test_what_the_cluster_does_not_have_is_not_asked_for_again() -> None:
    known = Known()
    look(known, 100.0, "p0")
    known.refuse_resize("p0", "cannot", lasting=True)
    assert known.again_in(100.0) is None
    look(known, 1e6, "p0")
    assert known.findings.unsized == {"p0": "cannot"}
    look(known, 1e6, "p0", generation=2)  # a person changes the workload
    assert known.findings.unsized == {}


def test_of_a_pod_that_is_gone_nothing_is_remembered() -> None:
    known = Known()
    look(known, 100.0, "p0")
    known.refuse_resize("p0", "cannot", lasting=True)
    look(known, 101.0, "p1")
    assert known.empty


def test_a_pod_is_young_for_a_while_and_then_looked_at_again() -> None:
    known = Known()
    look(known, 100.0)
    known.make("chat-0")
    look(known, 101.0)
    assert known.findings.young == {"chat-0"}
    assert not known.empty
    assert known.again_in(101.0) == YOUNG_SECONDS - 1
    look(known, 100.0 + YOUNG_SECONDS)
    assert known.findings.young == frozenset()
    assert known.again_in(100.0 + YOUNG_SECONDS) is None
    assert known.empty


def test_it_is_looked_at_again_for_the_first_of_its_reasons() -> None:
    known = Known()
    look(known, 100.0, "p0")
    known.make("chat-0")
    known.refuse_resize("p0", "quota")
    assert known.again_in(100.0) == min(YOUNG_SECONDS, BELIEVED_SECONDS)
