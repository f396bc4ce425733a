"""Keeps a count in memory, and in a file of its layer, of an emptyDir and of /dev/shm that it holds open.

A line on a connection to port 8080 counts; the answer is a line of JSON with all that it finds. What a test has in
EXTRA is run at the start, and what it has in ASK is evaluated for each answer.
"""

import contextlib
import json
import mmap
import os
import socket

FOLDERS = {"layer": "/var/kept", "data": "/data", "shm": "/dev/shm"}
os.makedirs("/var/kept/below", exist_ok=True)
with open("/var/kept/below/large", "wb") as large:
    large.write(os.urandom(1 << 20))
with open("/data/beside", "w") as beside:
    beside.write("not open")
os.symlink("/data/beside", "/var/kept/link")
os.remove("/etc/group")
files = {name: open(f"{folder}/count", "w+") for name, folder in FOLDERS.items()}  # noqa: SIM115
page = open("/dev/shm/page", "w+b")  # noqa: SIM115
page.truncate(4096)
shared = mmap.mmap(page.fileno(), 4096)
count = 0


def answer() -> dict[str, object]:
    global count  # noqa: PLW0603
    count += 1
    shared[:8] = count.to_bytes(8, "little")
    found: dict[str, object] = {"count": count, "host": socket.gethostname()}
    for name, file in files.items():
        file.write(f"{count}\n")
        file.flush()
        with open(f"{FOLDERS[name]}/count") as again:
            found[name] = again.read().split()
    with open("/dev/shm/page", "rb") as again:
        found["page"] = int.from_bytes(again.read(8), "little")
    with open("/var/kept/link") as again:
        found["link"] = again.read()
    found["large"] = os.path.getsize("/var/kept/below/large")
    found["removed"] = not os.path.exists("/etc/group")
    found["peers"] = len(peers)
    found["extra"] = eval(os.environ.get("ASK", "None"))
    return found


exec(os.environ.get("EXTRA", ""))
server = socket.create_server(("", 8080))
peers: list[socket.socket] = []
print("ready", flush=True)
while True:
    peer, _ = server.accept()
    peers.append(peer)
    with contextlib.suppress(OSError):
        while peer.recv(100):
            peer.sendall(json.dumps(answer()).encode() + b"\n")
