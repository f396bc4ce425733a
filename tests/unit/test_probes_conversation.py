"""What a kubelet is answered in the place of a sleeping application, byte by byte. Real clients: tests/node."""

from __future__ import annotations

import ssl

import pytest
from kybernate_agent.probes.certificate import server_context
from kybernate_agent.probes.conversation import Conversation
from kybernate_agent.probes.health import PREFACE, Health

GET = b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1\r\nUser-Agent: kube-probe/1.34\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def kinds(data: bytes) -> list[tuple[int, int, int]]:
    """(type, flags, stream) of each frame."""
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big")))
        data = data[9 + size :]
    return found


def no_tls() -> ssl.SSLContext:
    raise AssertionError("nobody spoke TLS")


def test_a_request_in_pieces_gets_one_answer() -> None:
    talk = Conversation(no_tls)
    assert b"".join(talk.feed(GET[at : at + 1]) for at in range(len(GET) - 1)) == b""
    assert talk.feed(GET[-1:]).startswith(OK)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"PRINT"])
def test_every_method_is_welcome(method: bytes) -> None:
    talk = Conversation(no_tls)
    assert talk.feed(method + b" / HTTP/1.0\r\n\r\n").startswith(OK)


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02", b"hello there\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"\r\n\r\n"]
)
def test_what_is_no_probe_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Conversation(no_tls).feed(data)


def test_a_client_without_end_is_refused() -> None:
    talk = Conversation(no_tls)
    head = b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000
    for _ in range(10):
        talk.feed(head)
    with pytest.raises(ValueError, match="too much"):
        talk.feed(head)


def test_a_health_check_is_serving() -> None:
    talk = Conversation(no_tls)
    assert kinds(talk.feed(PREFACE + frame(4, 0, 0))) == [(4, 0, 0), (4, 1, 0)], "our settings, and theirs acknowledged"
    assert talk.feed(frame(4, 1, 0)) == b""
    assert kinds(talk.feed(frame(6, 0, 0, b"12345678"))) == [(6, 1, 0)]
    assert talk.feed(frame(1, 4, 1, b"whatever")) == b"", "the message is still to come"
    answer = talk.feed(frame(0, 1, 1, b"\0\0\0\0\0"))
    assert kinds(answer) == [(1, 4, 1), (0, 0, 1), (1, 5, 1)]
    assert b"\0\0\0\0\x02\x08\x01" in answer
    assert kinds(talk.feed(frame(1, 1, 3) + frame(9, 4, 3))) == [(1, 4, 3), (0, 0, 3), (1, 5, 3)], "a continued header"


def test_a_preface_in_pieces() -> None:
    talk = Conversation(no_tls)
    data = PREFACE + frame(4, 0, 0)
    assert kinds(b"".join(talk.feed(data[at : at + 1]) for at in range(len(data)))) == [(4, 0, 0), (4, 1, 0)]


def test_a_frame_larger_than_agreed_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes"):
        Health().feed(PREFACE + b"\xff\xff\xff" + bytes(6))


def test_https() -> None:
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_alpn_protocols(["h2", "http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls, talk = client.wrap_bio(incoming, outgoing), Conversation(server_context)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            incoming.write(talk.feed(outgoing.read()))
    tls.write(GET)
    incoming.write(talk.feed(outgoing.read()))
    assert tls.read(4096).startswith(OK)
    assert tls.selected_alpn_protocol() == "http/1.1"


def test_broken_tls_is_refused() -> None:
    with pytest.raises(ValueError, match="TLS"):
        Conversation(server_context).feed(b"\x16\x03\x01\x00\x05hello")
