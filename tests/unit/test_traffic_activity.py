"""fold, as a table: what two samples say about use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from kybernate_agent.traffic.activity import Activity, Sample, fold
from kybernate_agent.traffic.sockdiag import Socket, State

PORT = 8080
LOCAL, REMOTE = b"\xc0\0\2\1", b"\xc0\0\2\t"
LISTENER = Socket(State.LISTEN, LOCAL, PORT, bytes(4), 0, 1, 10, 0)
ANSWERED = Socket(State.ESTABLISHED, LOCAL, PORT, REMOTE, 4242, 2, 11, 0, 100, 200, 5000, 5100)
ASKED = replace(ANSWERED, received=150, received_age_ms=1000)
OUTGOING = Socket(State.ESTABLISHED, LOCAL, 50000, REMOTE, 443, 3, 12, 0, 100, 200, 5000, 1000)
SILENT = replace(ASKED, received_age_ms=11000, sent_age_ms=15000)
FRESH = replace(ANSWERED, received=0, sent=0)
RESTORED = replace(ANSWERED, cookie=9, received=0, sent=0, sent_age_ms=0, received_age_ms=99999)


@dataclass(frozen=True)
class Case:
    name: str
    before: tuple[Socket, ...]
    after: tuple[Socket, ...]
    used: bool
    since: float | None
    opens: int = 0


CASES = [
    Case("nothing happened", (LISTENER, ANSWERED), (LISTENER, ANSWERED), False, None),
    Case("a request came", (LISTENER, ANSWERED), (LISTENER, ASKED), True, 99.0),
    Case("a request waits in silence", (ASKED,), (SILENT,), False, 89.0),
    Case("an answer went out", (ASKED,), (replace(ASKED, sent=300, sent_age_ms=10),), True, None),
    Case("a connection came", (LISTENER,), (LISTENER, FRESH), True, None),
    Case("a connection went", (LISTENER, ANSWERED), (LISTENER,), False, None),
    Case("a request ended, and its connection with it", (LISTENER, SILENT), (LISTENER,), True, None),
    Case("connections came and went", (LISTENER,), (LISTENER,), True, None, opens=3),
    Case("nobody accepts", (LISTENER,), (replace(LISTENER, unread=1),), True, 100.0),
    Case("data lies unread", (ANSWERED,), (replace(ANSWERED, unread=7),), False, 94.9),
    Case("equal ages are an answer", (ANSWERED,), (replace(ANSWERED, sent_age_ms=5100),), False, None),
    Case(
        "equal ages but nothing ever sent",
        (LISTENER,),
        (replace(ASKED, sent=0, sent_age_ms=1000),),
        True,
        99.0,
    ),
    Case(
        "equal ages but only the client moved",
        (ANSWERED,),
        (replace(ASKED, sent_age_ms=1000),),
        True,
        99.0,
    ),
    Case("the client closed its half and waits", (ASKED,), (replace(ASKED, state=State.CLOSE_WAIT),), False, 89.0),
    Case("the server has closed", (ASKED,), (replace(ASKED, state=State.FIN_WAIT2),), False, None),
    Case("outgoing data moved", (OUTGOING,), (replace(OUTGOING, received=101),), True, None),
    Case("an outgoing answer owes nothing", (OUTGOING,), (OUTGOING,), False, None),
    Case("restored, owing nothing", (ANSWERED,), (RESTORED,), True, None),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_fold(case: Case) -> None:
    first = fold(None, Sample(case.before, 0), 90.0, [PORT])
    activity = fold(first, Sample(case.after, case.opens), 100.0, [PORT])
    assert (activity.last_activity == 100.0) is case.used
    assert activity.in_flight_since == (None if case.since is None else pytest.approx(case.since))


def test_what_lies_unread_is_told_by_its_connection() -> None:
    """A listener's queue is of connections, and they have not been taken."""
    left = replace(OUTGOING, state=State.CLOSE_WAIT, unread=31)
    found = fold(None, Sample((replace(LISTENER, unread=1), ANSWERED, left), 0), 7.0, [PORT])
    assert found.unread == {OUTGOING.cookie: (100, 31)}


def test_the_first_sample_counts_as_use() -> None:
    assert fold(None, Sample((), 5), 7.0).last_activity == 7.0


def test_a_restored_connection_still_owes_what_it_owed() -> None:
    before = Activity(0.0, {ASKED.flow: 40.0}, {ASKED.cookie: ASKED})
    activity = fold(before, Sample((RESTORED,), 0), 100.0, [PORT])
    assert activity.in_flight_since == 40.0
    assert fold(activity, Sample((RESTORED,), 0), 101.0, [PORT]).in_flight_since == 40.0
    answered = replace(RESTORED, sent=10)
    assert fold(activity, Sample((answered,), 0), 101.0, [PORT]).in_flight_since is None


def test_a_stream_from_the_client_is_one_request() -> None:
    first = fold(None, Sample((ASKED,), 0), 100.0, [PORT])
    second = fold(first, Sample((replace(ASKED, received=900, received_age_ms=10),), 0), 200.0, [PORT])
    assert second.in_flight_since == first.in_flight_since == 99.0
    assert (second.requests(200.0, 600.0), second.requests(200.0, 60.0)) == (1, 0)


def test_sockets_that_do_not_count_change_nothing() -> None:
    sidecar = replace(ASKED, local_port=15000, cookie=7)
    first = fold(None, Sample((LISTENER,), 0), 90.0, [PORT], counts=lambda _: False)
    second = fold(first, Sample((LISTENER, sidecar), 0), 100.0, [PORT], counts=lambda _: False)
    assert (second.last_activity, second.in_flight_since) == (90.0, None)
