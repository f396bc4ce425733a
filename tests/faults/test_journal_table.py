"""The page on architecture tells of every step that the agent journals; so no test of faults forgets one."""

from __future__ import annotations

from journal_steps import listed, verb_of, written
from kybernate_agent.instance import Verb


def test_the_page_lists_exactly_the_steps_that_the_code_writes() -> None:
    assert {(verb_of(way), step) for way, steps in listed().items() for step in steps} == written()


def test_every_verb_has_steps() -> None:
    assert {verb_of(way) for way in listed()} == {verb.value for verb in Verb}
