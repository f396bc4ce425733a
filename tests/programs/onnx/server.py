"""Tells speech from silence with ONNX Runtime: counts its requests, and gives the same answer for the same sound."""

# mypy: ignore-errors

import http.server
import signal
import sys
import time

import numpy as np
import onnxruntime

MODEL = "/opt/wheels/faster_whisper/assets/silero_vad_v6.onnx"
CHUNKS, CHUNK = 8, 576  # 36 ms each at 16 kHz, as the model wants them
BORN = time.time_ns()


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    count = 0

    def do_GET(self):
        Server.count += 1
        body = f"{Server.count} {onnxruntime.__version__} {BORN} {self.heard()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def heard(self):
        """How sure the network is of each chunk of a rising tone with its overtones."""
        at = np.arange(CHUNKS * CHUNK, dtype=np.float32) / 16000
        sound = sum(np.sin(2 * np.pi * k * (120 + 200 * at) * at) / k for k in range(1, 12))
        memory = np.zeros((1, 1, 128), np.float32)
        feed = {"input": (0.2 * sound).astype(np.float32).reshape(CHUNKS, CHUNK), "h": memory, "c": memory}
        return ",".join(f"{sure:.6f}" for sure in self.session.run(["speech_probs"], feed)[0].flatten())


# The first process of a container has no other way to heed it.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.ThreadingHTTPServer(("", 8080), Server).serve_forever()
