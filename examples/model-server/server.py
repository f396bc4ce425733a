"""A small model server: sentence embeddings on the CPU, the model loaded from the wheel that brings it, no network.

    GET /rank?query=TEXT     what of a few sentences is nearest to TEXT, with scores
    GET /healthz             "ok" once the model is loaded

Every answer says how many requests this process has answered: memory that only a process has.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from urllib.parse import parse_qs, urlsplit

import wordllama

PORT = int(os.environ.get("PORT", "8080"))
SENTENCES = [
    "A cat sleeps on the windowsill.",
    "The train to the coast leaves at noon.",
    "Bread rises while the oven warms.",
    "An engine idles until somebody presses the pedal.",
    "The library keeps every book it was ever given.",
]


class Model:
    """The embeddings, and a count of what they were asked."""

    def __init__(self) -> None:
        started = time.monotonic()
        # The package looks for its tokenizer in a folder with another name than the one that its wheel has.
        own = Path(wordllama.__file__).parent
        self._model = wordllama.WordLlama.load(cache_dir=own, disable_download=True)
        self._lock = threading.Lock()
        self.requests = 0
        self.load_seconds = time.monotonic() - started

    def rank(self, query: str) -> dict[str, object]:
        with self._lock:
            self.requests += 1
            ranked = self._model.rank(query, SENTENCES)
            answer = [{"sentence": text, "score": round(float(score), 4)} for text, score in ranked]
            return {"requests": self.requests, "answer": answer}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: Model

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/rank":
            self._answer(200, self.model.rank(parse_qs(url.query).get("query", [""])[0]))
        elif url.path == "/healthz":
            self._answer(200, "ok")
        else:
            self._answer(404, "not found")

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        print(format % args, flush=True)


def main() -> None:
    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)  # a container's first process has no default for it
    Handler.model = Model()
    print(f"model loaded in {Handler.model.load_seconds:.2f} s; listening on port {PORT}", flush=True)
    ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()


if __name__ == "__main__":
    main()
