"""Counts its requests, answers with the file that it is asked for, and keeps a file open in each folder of WRITES.

The answer is `<count> <birth>`, a line each for what the file holds. Each request's count goes into the open files.
"""

import http.server
import os
import signal
import sys
import time

BORN = f"{time.time():.3f}"
FILES = [open(f"{folder}/counts", "a") for folder in os.environ["WRITES"].split()]  # noqa: SIM115


class Reading(http.server.BaseHTTPRequestHandler):
    count = 0

    def do_GET(self) -> None:
        Reading.count += 1
        for file in FILES:
            print(Reading.count, file=file, flush=True)
        body = f"{Reading.count} {BORN}\n".encode()
        if os.path.isfile(self.path):
            with open(self.path, "rb") as asked:
                body += asked.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.HTTPServer(("0.0.0.0", 8080), Reading).serve_forever()
