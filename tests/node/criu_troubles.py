"""Programs that CRIU refuses, as code that the test server runs before it is ready. No wheel, no compiler: ctypes."""

from __future__ import annotations

HEAD = """
import ctypes, os, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    result = libc.syscall(*arguments)
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        while True: time.sleep(3600)
    return pid
"""

IO_URING = HEAD + "ring = call(425, 4, ctypes.create_string_buffer(120))"
MPTCP = HEAD + "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); s.bind(('', 8262)); s.listen()"
SCTP_LIKE = HEAD + "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)"
USERFAULTFD = HEAD + "fault = call(323, 1)"
LANDLOCK = HEAD + "attr = ctypes.c_uint64(1); rules = call(444, ctypes.byref(attr), 8, 0)"
NOT_ACCEPTED = HEAD + ("s = socket.create_server(('', 8001)); c = socket.create_connection(('127.0.0.1', 8001))")
BIG_DELETED = HEAD + (
    "f = open('/var/tmp/big', 'wb'); os.posix_fallocate(f.fileno(), 0, 1025 << 20); os.unlink('/var/tmp/big')"
)
INOTIFY = HEAD + (
    "os.makedirs('/opt/app/conf', exist_ok=True); n = libc.inotify_init(); "
    "assert libc.inotify_add_watch(n, b'/opt/app/conf', 2) > 0"
)
UNIX_OUTSIDE = HEAD + "u = socket.socket(socket.AF_UNIX); u.connect('/outside/sock')"
MQUEUE = HEAD + (
    "rt = ctypes.CDLL('librt.so.1'); q = rt.mq_open(b'/queue', os.O_CREAT | os.O_RDWR, 0o600, None); assert q >= 0"
)
NESTED_PID = HEAD + (
    "r, w = os.pipe()\n"
    "def nest():\n"
    "    assert libc.unshare(0x20000000) == 0\n"
    "    child(lambda: os.write(w, b'x'))\n"
    "child(nest); os.read(r, 1)"
)
STOPPED = HEAD + "pid = child(lambda: None); os.kill(pid, 19); os.waitpid(pid, os.WUNTRACED)"
TRACED = HEAD + ("r, w = os.pipe()\npid = child(lambda: (libc.ptrace(0, 0, 0, 0), os.write(w, b'x')))\nos.read(r, 1)")
PERF = HEAD + "a = (ctypes.c_uint32 * 32)(1, 128); e = call(298, a, 0, -1, -1, 0)"
FANOTIFY = HEAD + "n = call(300, 0, 0)"
EPOLL = HEAD + "import select; e = select.epoll()"
DEVICE = HEAD + "d = open('/dev/full')"
OTHER_USER = HEAD + (
    "r, w = os.pipe()\n"
    "child(lambda: (os.setgroups([]), os.setgid(65534), os.setuid(65534), os.write(w, b'x')))\n"
    "os.read(r, 1)"
)
