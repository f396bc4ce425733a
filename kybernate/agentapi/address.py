"""Where the agent listens: a unix socket, whose path may be longer than the 107 bytes that the kernel takes.

gRPC hands the path to the kernel as it is. So the folder is opened, and the socket is named through that descriptor:
short whatever the path, for the side that listens and the side that connects. The descriptor must stay open as long
as the channel or server may connect or bind.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

DEFAULT_SOCKET = Path("/run/kybernate/agent.sock")
SOCKET_VARIABLE = "KYBERNATE_SOCKET"
HEALTH_SERVICE = "kybernate.agent.v1.Agent"


class SocketAddress:
    """The short names of the unix socket `path`, valid until `close`.

    Raises OSError when the folder cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.path = f"/proc/self/fd/{self._folder}/{path.name}"
        self.target = f"unix:///proc/self/fd/{self._folder}/{quote(path.name)}"

    def close(self) -> None:
        """Give the folder back; a second call does nothing."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def __enter__(self) -> SocketAddress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
