"""What the controller remembers of one workload between two looks."""

from __future__ import annotations

from kybernate_controller.known import BELIEVED_SECONDS, Known


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
