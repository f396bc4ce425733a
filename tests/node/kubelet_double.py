"""A stand-in for the kubelet's prober: connects as it does, one fresh connection a probe, no keep-alive, no certificate
checked. It runs in a network namespace of its own choice under the name it is given, since name and namespace are what
the agent knows a kubelet by. It is no kubelet in anything else; tests/cluster uses the real one.

    python kubelet_double.py NAME      then a line for each probe on stdin: WAY ADDRESS PORT [SECONDS]; a line of answer

Ways: http, https, tcp, grpc; `open` connects and keeps the connection, `say` sends an HTTP request on it and waits for
the answer, `shut` closes it.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from pathlib import Path

LIMIT_SECONDS = 20.0


class KubeletDouble:
    """The process, in network namespace `netns`."""

    def __init__(self, netns: str, name: str = "kubelet") -> None:
        argv = ["nsenter", f"--net={netns}", sys.executable, __file__, name]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> KubeletDouble:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def ask(self, way: str, address: str, port: int, seconds: float = LIMIT_SECONDS) -> str:
        """Blocks; what the probe came to: "200", "open", "SERVING", or the name of an error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{way} {address} {port} {seconds}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


_kept: list[socket.socket] = []


def _connect(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


def _http(link: socket.socket) -> str:
    link.sendall(b"GET /healthz HTTP/1.1\r\nHost: pod\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n")
    said = b""
    while b"\r\n\r\n" not in said:
        data = link.recv(4096)
        if not data:
            raise ConnectionError("the connection ended")
        said += data
    return said.split(b" ")[1].decode()


def _grpc(address: str, port: int, seconds: float) -> str:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    text = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    # A pool of its own: else channels of one process share a connection.
    with grpc.insecure_channel(text, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service="any"), timeout=seconds)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def probe(way: str, address: str, port: int, seconds: float) -> str:
    if way == "grpc":
        return _grpc(address, port, seconds)
    if way == "say":
        return _http(_kept[-1])
    if way == "shut":
        _kept.pop().close()
        return "closed"
    with _connect(address, port, seconds) as link:
        if way == "open":
            _kept.append(link.dup())
            _kept[-1].settimeout(seconds)
            return "open"
        if way == "http":
            return _http(link)
        if way == "https":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(link) as inside:
                return _http(inside)
        return "open"


def main(name: str) -> None:
    Path("/proc/self/comm").write_text(name)
    print("ready", flush=True)
    for line in sys.stdin:
        way, address, port, seconds = line.split()
        try:
            said = probe(way, address, int(port), float(seconds))
        except Exception as error:
            said = type(error).__name__
        print(said, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
