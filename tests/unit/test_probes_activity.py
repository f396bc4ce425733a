"""What the kubelet's connections do to a pod's activity: nothing; and what others' do beside them: as ever."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from kybernate_agent.traffic.activity import Activity, Sample, fold
from kybernate_agent.traffic.sockdiag import Socket, State

PORT = 8080
LOCAL, NODE = b"\xc0\0\2\1", b"\xc0\0\2\xfe"
LISTENER = Socket(State.LISTEN, LOCAL, PORT, bytes(4), 0, 1, 10, 0)
PROBE = Socket(State.ESTABLISHED, LOCAL, PORT, NODE, 4242, 2, 11, 0, 100, 0, 5000, 10)
CALL = replace(PROBE, cookie=3, remote_port=4243)


def used(before: Sample, after: Sample) -> Activity:
    return fold(fold(None, before, 90.0, [PORT]), after, 100.0, [PORT])


def test_a_probe_that_is_seen_counts_for_nothing() -> None:
    probes = frozenset({PROBE.cookie})
    found = used(Sample((LISTENER,), 5), Sample((LISTENER, PROBE), 6, probes, 1))
    assert found.last_activity == 90.0
    assert not found.in_flight
    moved = fold(found, Sample((LISTENER, replace(PROBE, sent=99)), 6, probes, 1), 110.0, [PORT])
    assert moved.last_activity == 90.0


def test_a_call_beside_a_probe_counts() -> None:
    found = used(Sample((LISTENER,), 5), Sample((LISTENER, PROBE, CALL), 7, frozenset({PROBE.cookie}), 1))
    assert found.last_activity == 100.0
    assert list(found.in_flight) == [CALL.flow]


def test_a_probe_that_nobody_has_accepted_is_no_call() -> None:
    queued, waiting = replace(LISTENER, unread=1), replace(PROBE, inode=0)
    found = used(Sample((LISTENER,), 5), Sample((queued, waiting), 6, frozenset({PROBE.cookie}), 1))
    assert found.last_activity == 90.0
    assert not found.in_flight
    found = used(Sample((LISTENER,), 5), Sample((replace(queued, unread=2), waiting), 7, frozenset({PROBE.cookie}), 1))
    assert found.last_activity == 100.0
    assert list(found.in_flight) == [LISTENER.flow]


def last_used(periods: Sequence[float], calls: Sequence[float], step: float, late: float, until: float) -> list[float]:
    """The times at which the pod was found used, when nobody's connection is ever seen, only counted.

    `late`: a probe comes as much of its period too late as that, at random.
    """
    dice = random.Random(1)
    opens = [
        (number + dice.random() * late) * period for period in periods for number in range(1, int(until / period) + 1)
    ]
    opens = sorted([*opens, *calls])
    activity, found, counted, now = None, [], 0, 0.0
    while now < until:
        while counted < len(opens) and opens[counted] <= now:
            counted += 1
        activity = fold(activity, Sample((LISTENER,), counted, probe_periods=tuple(periods)), now, [PORT])
        if activity.last_activity == now and now:
            found.append(now)
        now += step
    return found


@pytest.mark.parametrize("step", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("periods", [(1.0,), (10.0,), (1.0, 10.0), (10.0, 10.0), (2.0, 3.0, 1.0)])
@pytest.mark.parametrize("late", [0.0, 0.5, 0.95])
def test_unseen_probes_are_no_use_in_an_hour(periods: Sequence[float], step: float, late: float) -> None:
    assert last_used(periods, [], step, late, 3600.0) == []


@pytest.mark.parametrize("step", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("periods", [(1.0,), (10.0,), (10.0, 10.0)])
def test_unseen_calls_beside_probes_are_found(periods: Sequence[float], step: float) -> None:
    calls = [60.0 + 37.3 * number for number in range(20)]
    found = last_used(periods, calls, step, 0.0, 900.0)
    assert len(calls) - 2 * len(periods) <= len(found) <= len(calls), "a few pass for late probes"
    assert all(any(call <= at <= call + max(periods) + 2 * step for call in calls) for at in found), "and nothing else"


def test_without_declared_probes_each_connection_counts() -> None:
    assert last_used([], [20.0], 1.0, 0.0, 60.0) == [20.0]


def test_a_new_pod_counts_from_zero() -> None:
    before = Sample((LISTENER,), 500, frozenset(), 40, (1.0,))
    assert used(before, Sample((LISTENER,), 2, frozenset(), 0, (1.0,))).last_activity == 100.0
