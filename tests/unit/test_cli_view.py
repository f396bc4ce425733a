"""What an instance looks like in a row."""

from __future__ import annotations

import time

from google.protobuf.timestamp_pb2 import Timestamp

from kybernate.agentapi._pb import agent_pb2 as pb
from kybernate.cli import view


def test_a_step_shows_its_time_until_that_has_passed() -> None:
    now = int(time.time())
    coming = pb.Instance(next_verb="suspend", next_at=Timestamp(seconds=now + 3600))
    assert view.next_step(coming).startswith("suspend in ")
    put_off = pb.Instance(next_verb="suspend", next_at=Timestamp(seconds=now - 3600))
    assert view.next_step(put_off) == "suspend"
    assert view.next_step(pb.Instance()) == "-"
