"""The counting server with a POSIX message queue open, which CRIU cannot dump."""

import ctypes
import os
import runpy

libc = ctypes.CDLL(None, use_errno=True)
queue = libc.mq_open(b"/held", os.O_CREAT | os.O_RDWR, 0o600, None)
if queue < 0:
    raise OSError(ctypes.get_errno(), "mq_open")
runpy.run_path("/apps/counting.py")
