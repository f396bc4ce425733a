"""The work queue and the loop on top of it; time stands still unless a test moves it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest

from kybernate.kube.backoff import Backoff
from kybernate.kube.controller import run_loop
from kybernate.kube.errors import ConflictError, TooManyRequestsError
from kybernate.kube.queue import WorkQueue


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock=clock, first_seconds=1.0, longest_seconds=8.0)


def taken(queue: WorkQueue[str]) -> list[str]:
    """All that can be taken now, and done with."""
    found = []
    while (key := queue.take()) is not None:
        found.append(key)
        queue.done(key)
    return found


def test_a_key_waits_once_and_in_order(queue: WorkQueue[str]) -> None:
    for key in "abacb":
        queue.add(key)
    assert len(queue) == 3
    assert taken(queue) == ["a", "b", "c"]
    assert queue.idle


def test_a_key_at_work_is_not_given_out_again_until_it_is_done(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.take() == "a"
    queue.add("a")
    queue.add("a")
    assert queue.take() is None
    assert not queue.idle
    queue.done("a")
    assert queue.take() == "a"
    queue.done("a")
    assert queue.take() is None


def test_a_later_key_comes_in_its_time_and_the_earliest_counts(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_after("a", 10)
    queue.add_after("a", 5)
    queue.add_after("a", 7)
    queue.add_after("b", 6)
    assert taken(queue) == []
    clock.now += 5
    assert taken(queue) == ["a"]
    clock.now += 1
    assert taken(queue) == ["b"]
    clock.now += 100
    assert taken(queue) == [], "a was looked at since it was told to come later"


def test_a_key_that_is_taken_is_no_longer_due_later(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_after("a", 5)
    queue.add("a")
    assert taken(queue) == ["a"]
    clock.now += 5
    assert taken(queue) == []


def test_a_key_that_comes_due_at_work_comes_again(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    assert queue.take() == "a"
    queue.add_after("a", 1)
    clock.now += 1
    assert queue.take() is None
    queue.done("a")
    assert queue.take() == "a"


def test_failures_wait_longer_each_time_with_jitter_until_they_are_forgotten(queue: WorkQueue[str]) -> None:
    pauses = [queue.retry("a") for _ in range(6)]
    for pause, whole in zip(pauses, [1, 2, 4, 8, 8, 8], strict=True):
        assert whole / 2 <= pause <= whole
    assert queue.failures("a") == 6
    assert 0.5 <= queue.retry("b") <= 1
    queue.forget("a")
    assert 0.5 <= queue.retry("a") <= 1
    assert queue.retry("b", at_least=60) == 60


def test_pauses_of_those_who_failed_together_differ_and_never_overflow() -> None:
    assert len({Backoff().next() for _ in range(20)}) > 1
    assert Backoff().pause_after(10**9) <= 30


def test_groups_take_turns(clock: Clock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock=clock, group=lambda key: key[0])
    for key in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.add(key)
    assert taken(queue) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_thousand_keys_of_one_delay_another_by_one(clock: Clock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock=clock, group=lambda key: key[0])
    for number in range(1000):
        queue.add(f"a{number}")
    queue.add("b")
    assert [queue.take(), queue.take()] == ["a0", "b"]


async def test_who_waits_is_woken_by_an_addition() -> None:
    queue: WorkQueue[str] = WorkQueue()
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for key in "abc":
        queue.add(key)
    assert sorted(await asyncio.gather(*waiting)) == ["a", "b", "c"]


async def test_who_waits_is_woken_when_time_has_come() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("late", 3600)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add_after("soon", 0.01)
    assert await waiting == "soon"


class Worked:
    """A reconcile that notes what it was called with; `script` says what it does for a key, call by call."""

    def __init__(self, **script: list[object]) -> None:
        self.calls: list[str] = []
        self.script = script
        self.at_work: Counter[str] = Counter()
        self.most_at_once = 0

    async def __call__(self, key: str) -> float | None:
        self.at_work[key] += 1
        self.most_at_once = max(self.most_at_once, self.at_work[key])
        self.calls.append(key)
        try:
            await asyncio.sleep(0)
            answers = self.script.get(key)
            answer = answers.pop(0) if answers else None
            if isinstance(answer, Exception):
                raise answer
            if answer == "hang":
                await asyncio.Event().wait()
            assert answer is None or isinstance(answer, float)
            return answer
        finally:
            self.at_work[key] -= 1

    async def until(self, calls: int) -> None:
        async with asyncio.timeout(30):
            while len(self.calls) < calls:
                await asyncio.sleep(0.005)


async def loop(queue: WorkQueue[str], worked: Worked, calls: int, deadline_seconds: float = 30) -> None:
    running = asyncio.create_task(run_loop(queue, worked, 4, deadline_seconds=deadline_seconds))
    try:
        await worked.until(calls)
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert running.cancelled()


async def test_each_key_is_reconciled_and_never_twice_at_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    worked = Worked()
    running = asyncio.create_task(run_loop(queue, worked, 4))
    for _ in range(50):
        for key in "ab":
            queue.add(key)
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        while not queue.idle:
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    assert set(worked.calls) == {"a", "b"}
    assert len(worked.calls) > 2
    assert worked.most_at_once == 1


async def test_what_asks_to_come_again_comes_again() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    worked = Worked(a=[0.01, 0.01])
    await loop(queue, worked, 3)
    assert worked.calls == ["a", "a", "a"]


async def test_what_fails_comes_again_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    queue: WorkQueue[str] = WorkQueue(first_seconds=0.01)
    for key in "ab":
        queue.add(key)
    conflict = ConflictError(call="apply x", problem="it changed")
    worked = Worked(a=[ValueError("broken"), conflict])
    await loop(queue, worked, 4)
    assert Counter(worked.calls) == {"a": 3, "b": 1}
    assert queue.failures("a") == 0
    assert [record.levelname for record in caplog.records] == ["ERROR"], "a conflict is no fault"
    assert "broken" in caplog.text


async def test_the_servers_word_when_to_come_again_counts() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock=clock, first_seconds=0.01)
    queue.add("a")
    worked = Worked(a=[TooManyRequestsError(call="apply x", problem="busy", retry_after=60.0)])
    await loop(queue, worked, 1)
    clock.now += 59.9
    assert queue.take() is None
    clock.now += 0.2
    assert queue.take() == "a"


async def test_what_takes_too_long_is_stopped_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    queue: WorkQueue[str] = WorkQueue(first_seconds=0.01)
    queue.add("a")
    worked = Worked(a=["hang"])
    await loop(queue, worked, 2, deadline_seconds=0.05)
    assert "took too long" in caplog.text
