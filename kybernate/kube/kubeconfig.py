"""Reading kubeconfigs, in a program of its own: `python -m kybernate.kube.kubeconfig` answers with one JSON object.

The `kubernetes` package knows kubeconfigs (several files, relative paths, exec plugins, data or files) and has three
habits that a daemon cannot have: it costs 40 MB, it waits for an exec plugin for ever, and it leaves keys in temporary
files until the program ends. So it runs in a child: `load` starts it, ends it with its plugin at the deadline, removes
its folder, and takes the answer through a pipe. Whatever the package says on a failure may hold the user's whole entry
(tokens too), so only what stands before the first brace is passed on.

A plugin runs without a terminal. Impersonation (`as`) is refused: the package would pass over it and act with more
rights than the person meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from kybernate.kube.errors import CredentialsDeadlineError, CredentialsError

DEADLINE_SECONDS = 60.0
LIMIT_BYTES = 4 << 20


class Loaded(msgspec.Struct, omit_defaults=True):
    """What a kubeconfig says, with files read and plugins asked."""

    server: str = ""
    namespace: str = ""
    authority: str = ""
    """PEM; empty: the machine's own authorities."""
    certificate: str = ""
    key: str = ""
    authorization: str = ""
    """The value of the HTTP header."""
    verify: bool = True
    server_name: str = ""
    proxy: str = ""
    expires: float | None = None
    """Seconds since the epoch."""
    problem: str = ""
    """Why there is nothing else here."""

    def __repr__(self) -> str:
        return f"Loaded(server={self.server!r})"  # nothing else of it belongs into a log


async def load(source: str, context: str | None = None, *, deadline_seconds: float = DEADLINE_SECONDS) -> Loaded:
    """What the kubeconfig files in `source` (separated by ':') say for `context`, or else their current one.

    Raises CredentialsError, CredentialsDeadlineError.
    """
    with tempfile.TemporaryDirectory(prefix="kybernate-kube-") as folder:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # nothing out of the folder that the caller happens to stand in
            "-m",
            __name__,
            source,
            context or "",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=LIMIT_BYTES,
            env=os.environ | {"TMPDIR": folder},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(deadline_seconds):
                answer, _ = await child.communicate()
        except TimeoutError as error:
            raise CredentialsDeadlineError(source=source, seconds=deadline_seconds) from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    try:
        loaded = msgspec.json.decode(answer, type=Loaded)
    except msgspec.MsgspecError as error:
        problem = f"the program that reads it ended with exit code {child.returncode} and no answer"
        raise CredentialsError(source=source, problem=problem) from error
    if loaded.problem or not loaded.server:
        raise CredentialsError(source=source, problem=loaded.problem or "its cluster names no server")
    return loaded


def read(source: str, context: str | None) -> Loaded:
    """What `load` answers; may wait for a plugin without end. The caller's TMPDIR will hold keys."""
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

    said = _Said()
    logging.getLogger().addHandler(said)
    try:
        merged = KubeConfigMerger(source).config
        if merged is None:
            return Loaded(problem="there is no such file")
        loader = KubeConfigLoader(config_dict=merged, config_base_path=None, active_context=context)
        chosen = loader.current_context["context"]
        user = _user(merged, chosen.get("user", ""))
        if any(key.startswith("as") for key in user):
            return Loaded(problem="it impersonates another user (as), which is not supported")
        configuration = Configuration()
        configuration.proxy = None  # what the environment says is for `credentials` to weigh
        loader.load_and_set(configuration)
        authorization = configuration.api_key.get("BearerToken", "")
        if "exec" in user and not authorization and not configuration.cert_file:
            reason = _without_data(said.last) or "no reason given"
            return Loaded(problem=f"its exec plugin gave no credentials: {reason}")
        expires = getattr(loader, "expiry", None)
        return Loaded(
            server=configuration.host if configuration.host != Configuration().host else "",
            namespace=chosen.get("namespace", ""),
            authority=_text(configuration.ssl_ca_cert),
            certificate=_text(configuration.cert_file),
            key=_text(configuration.key_file),
            authorization=authorization,
            verify=configuration.verify_ssl,
            server_name=configuration.tls_server_name or "",
            proxy=configuration.proxy or "",
            expires=expires.timestamp() if expires else None,
        )
    except (ConfigException, OSError) as error:
        return Loaded(problem=_without_data(str(error)))
    except Exception as error:  # a file of any shape must end in a sentence, and never in its contents
        return Loaded(problem=f"it is no kubeconfig ({type(error).__name__})")


class _Said(logging.Handler):
    """The package logs why a plugin failed, and goes on without credentials."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


def _user(merged: Any, name: str) -> dict[str, Any]:
    for entry in merged.value.get("users") or ():
        if entry.value.get("name") == name:
            return dict(entry.value.get("user") or {})
    return {}


def _text(path: str | None) -> str:
    return Path(path).read_text() if path else ""


def _without_data(text: str) -> str:
    return text.partition("{")[0].strip(" /.\n")


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(read(sys.argv[1], sys.argv[2] or None)))
