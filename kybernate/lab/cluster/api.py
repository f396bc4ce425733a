"""Single requests to the API server: what the lab asks while it waits, without a process for each question."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kybernate.errors import ExternalError

REQUEST_SECONDS = 10.0


class ApiError(ExternalError):
    """{method} {path}: {reason}"""


@dataclass(frozen=True)
class Api:
    """An API server, the authority that it is known by, and the certificate that we show it."""

    host: str
    port: int
    authority: Path
    certificate: Path
    key: Path

    def get(self, path: str) -> Any:
        """The object at this path, or the text where it is none. Raises ApiError."""
        return self.request("GET", path)

    def request(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Raises ApiError, with the server's message where it gave one."""
        try:
            context = ssl.create_default_context(cafile=str(self.authority))
            context.load_cert_chain(self.certificate, self.key)
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=REQUEST_SECONDS, context=context)
            try:
                data = None if body is None else json.dumps(body)
                connection.request(method, path, data, {"Content-Type": kind, "Accept": "application/json, */*"})
                answer = connection.getresponse()
                text = answer.read().decode()
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(method=method, path=path, reason=error) from error
        said = json.loads(text) if "json" in answer.headers.get("Content-Type", "") else text
        if answer.status >= 400:
            reason = said.get("message", text) if isinstance(said, dict) else text
            raise ApiError(method=method, path=path, reason=f"{answer.status}: {reason}")
        return said
