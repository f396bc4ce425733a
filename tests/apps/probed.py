"""An application that a kubelet probes in every way: HTTP on 8080, TCP on 8081, gRPC on 8082, and by a file.

/ counts its requests and tells its birth, as counting.py does. /healthz and the gRPC service count for nothing; after
/sick they say no until /well. The file /alive is there while it is well.
"""

import http.server
import itertools
import os
import socket
import socketserver
import threading
import time
from pathlib import Path

BORN = f"{time.time():.3f}"
NUMBERS = itertools.count(1)
ALIVE = Path("/alive")


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/sick":
            ALIVE.unlink()
        elif self.path == "/well":
            ALIVE.touch()
        probe = self.path == "/healthz"
        body = b"" if probe else f"{next(NUMBERS)} {BORN}\n".encode()
        self.send_response(503 if probe and not ALIVE.exists() else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form: str, *words: object) -> None:
        pass


class Tcp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1)


class Grpc(socketserver.StreamRequestHandler):
    """HTTP/2 for one client that asks for its health: each stream that it ends is answered."""

    def handle(self) -> None:
        self.rfile.read(24)  # the preface
        self.frame(4, 0, 0, b"")
        while ALIVE.exists() and len(head := self.rfile.read(9)) == 9:
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            data = self.rfile.read(int.from_bytes(head[:3], "big"))
            if kind in (4, 6) and not flags & 1:
                self.frame(kind, 1, 0, data if kind == 6 else b"")
            elif kind in (0, 1) and flags & 1:
                self.frame(1, 4, stream, b"\x88\x0f\x10\x10application/grpc")
                self.frame(0, 0, stream, b"\0\0\0\0\x02\x08\x01")
                self.frame(1, 5, stream, b"\0\x0bgrpc-status\x010")

    def frame(self, kind: int, flags: int, stream: int, data: bytes) -> None:
        self.wfile.write(len(data).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + data)


class Listener(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


ALIVE.touch()
for port, handler in ((8081, Tcp), (8082, Grpc)):
    threading.Thread(target=Listener(("::", port), handler).serve_forever, daemon=True).start()
print("ready", os.getpid(), flush=True)
Server(("::", 8080), Web).serve_forever()
