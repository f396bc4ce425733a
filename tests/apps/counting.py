"""Counts its requests, remembers when it was born, and holds some memory. SIGTERM ends it with 7."""

import http.server
import itertools
import os
import signal
import socket
import sys
import time

BALLAST = bytearray(os.urandom(1 << 20)) * int(os.environ.get("MIB", "4"))
BORN = f"{time.time():.3f}"
NUMBERS = itertools.count(1)  # each request takes one, also when many threads ask at once


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


class Counting(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    count = 0

    def do_GET(self) -> None:
        self.count = next(NUMBERS)
        if self.path.startswith("/slow/"):
            time.sleep(float(self.path[6:]))
        if self.path == "/hold":
            self.rfile.read(1)  # the answer waits until the client says more, or hangs up
        if self.path.startswith("/stream/"):
            self.stream(int(self.path[8:]))
            return
        body = f"{self.count} {BORN}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, lines: int) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(lines):
            self.wfile.write(f"{number}\n".encode())
            self.wfile.flush()
            time.sleep(0.1)
        self.close_connection = True

    def log_message(self, form: str, *words: object) -> None:
        print("request", self.count, flush=True)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
if len(sys.argv) > 1:
    with open("/written", "a") as file:
        file.write(sys.argv[1])
print("ready", flush=True)
Server(("::", 8080), Counting).serve_forever()
