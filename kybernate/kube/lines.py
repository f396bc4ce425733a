"""Lines out of a stream that comes in pieces of any size: a line is whole when its newline has come, never before."""

from __future__ import annotations


class Lines:
    """Takes pieces, gives whole lines without their newline; what has no newline yet stays for the next piece."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._rest = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that are whole with this piece; empty ones are left out.

        Raises OverflowError where a line grows beyond the limit.
        """
        self._rest += piece
        whole: list[bytes] = []
        if b"\n" in piece:
            *lines, self._rest = self._rest.split(b"\n")
            whole = [bytes(line) for line in lines if line.strip()]
        if len(self._rest) > self._limit:
            raise OverflowError(f"a line of more than {self._limit} bytes")
        return whole
