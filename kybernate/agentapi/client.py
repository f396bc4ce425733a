"""A client of the agent on this machine, for programs that are not asynchronous (the CLI, tests, benchmarks).

One channel over the agent's unix socket. Each call has a deadline; a failure is raised as the error that the agent
raised (see `status`), or as NoAgentError when nobody answers. Whoever may open the socket may do everything: there is
no further login.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from kybernate.agentapi._pb import agent_pb2 as pb
from kybernate.agentapi._pb.agent_pb2_grpc import AgentStub
from kybernate.agentapi.address import SOCKET_VARIABLE, SocketAddress
from kybernate.agentapi.status import METADATA_LIMIT_BYTES, error_from
from kybernate.errors import DeadlineError, ExternalError, KybernateError

QUICK_SECONDS = 10.0
"""Deadline of calls that the agent answers out of its memory and journal."""
STEP_SECONDS = 300.0
"""Deadline of calls that wait for a dump, a restore or a container's end, unless the caller says otherwise."""

Response = TypeVar("Response", bound=Message)


class NoAgentError(ExternalError):
    """No agent answers at {socket}: {reason}. {remedy}"""

    exit_code = 3


class AgentDeadlineError(DeadlineError):
    """The agent at {socket} did not answer {call} within {seconds:g} s. What was ordered may still happen: look with
    `kybernate get`, and in the agent's log for the reason."""


class AgentFailedError(ExternalError):
    """The agent at {socket} failed in {call} ({code}): {reason}. The agent's log says more."""


class AgentClient:
    """The calls of `agent.proto`; open until `close`. Safe to use from several threads.

    Raises NoAgentError when nobody listens at `socket_path`, or the caller may not connect.
    """

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        try:
            self._address = SocketAddress(socket_path.absolute())
        except OSError as error:
            raise _no_agent(socket_path, error) from error
        try:
            _probe(self._address.path)
        except OSError as error:
            self._address.close()
            raise _no_agent(socket_path, error) from error
        self._channel = grpc.insecure_channel(
            self._address.target,
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.max_metadata_size", METADATA_LIMIT_BYTES),
                ("grpc.absolute_max_metadata_size", METADATA_LIMIT_BYTES),
            ],
        )
        self._stub = AgentStub(self._channel)

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()
        self._address.close()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def instances(self) -> list[pb.Instance]:
        """Every instance, ordered by name."""
        return [*self._call("List", self._stub.List, pb.ListRequest()).instances]

    def get(self, name: str) -> pb.Instance:
        """One instance. Raises NotFoundError."""
        return self._call("Get", self._stub.Get, pb.GetRequest(name=name))

    def find(self, name: str) -> list[pb.Instance]:
        """The instance of that name, or all of the workload of that name: one, here. Raises NotFoundError."""
        return [self.get(name)]

    def watch(self, name: str = "", *, deadline_seconds: float | None = None) -> Iterator[pb.WatchEvent]:
        """What exists, a SYNCED, then every change until the caller stops iterating, the agent ends, or the deadline
        passes (AgentDeadlineError)."""
        return self._stream("Watch", self._stub.Watch, pb.WatchRequest(name=name), deadline_seconds)

    def apply(self, text: str, file_name: str) -> list[pb.AppliedWorkload]:
        """Take over the workloads in `text`. Raises InvalidError: the text is wrong; nothing of it was taken over."""
        request = pb.ApplyRequest(text=text, file_name=file_name)
        return [*self._call("Apply", self._stub.Apply, request).workloads]

    def delete(
        self,
        name: str,
        *,
        wait: bool = False,
        deadline_seconds: float = STEP_SECONDS,
    ) -> str:
        """End and forget a workload; its name. Raises NotFoundError."""
        request = pb.DeleteRequest(name=name, wait=wait)
        return self._call("Delete", self._stub.Delete, request, deadline_seconds).workload

    def order(
        self,
        verb: str,
        name: str,
        *,
        wait: bool = False,
        deadline_seconds: float = STEP_SECONDS,
    ) -> pb.Instance:
        """One step, `verb` being suspend, park or resume; the instance after it (`wait`) or as it was noted.

        Raises NotFoundError, RefusedError (not possible now), DeadlineError, ExternalError, StateLostError (nothing to
        resume from).
        """
        calls = {"suspend": self._stub.Suspend, "park": self._stub.Park, "resume": self._stub.Resume}
        return self._call(verb.capitalize(), calls[verb], pb.VerbRequest(name=name, wait=wait), deadline_seconds)

    def order_all(
        self, verb: str, name: str, *, wait: bool = False, deadline_seconds: float = STEP_SECONDS
    ) -> list[pb.Instance | KybernateError]:
        """`order` for each instance of that name or workload: one, here. Raises NotFoundError, and what it raises."""
        return [self.order(verb, name, wait=wait, deadline_seconds=deadline_seconds)]

    def logs(self, name: str, *, follow: bool = False, tail_lines: int | None = None) -> Iterator[pb.LogChunk]:
        """What the container wrote, oldest first. Raises NotFoundError."""
        request = pb.LogsRequest(name=name, follow=follow, tail_lines=tail_lines)
        return self._stream("Logs", self._stub.Logs, request)

    def exec_target(self, name: str, *, tty: bool = False) -> list[str]:
        """The argv to which a command is appended to run it in the container. Raises NotFoundError, RefusedError."""
        request = pb.ExecTargetRequest(name=name, tty=tty)
        return [*self._call("ExecTarget", self._stub.ExecTarget, request).argv]

    def _call(
        self,
        name: str,
        method: grpc.UnaryUnaryMultiCallable[Any, Response],
        request: Message,
        deadline_seconds: float = QUICK_SECONDS,
    ) -> Response:
        try:
            return method(request, timeout=deadline_seconds)
        except grpc.RpcError as error:
            raise self._error(error, name, deadline_seconds) from error

    def _stream(
        self,
        name: str,
        method: grpc.UnaryStreamMultiCallable[Any, Response],
        request: Message,
        deadline_seconds: float | None = None,
    ) -> Iterator[Response]:
        # May be without a deadline: it lasts as long as its reader wants, and an agent that dies closes the socket.
        call = method(request, timeout=deadline_seconds)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._error(error, name, deadline_seconds or 0.0) from error
        finally:
            call.cancel()

    def _error(self, error: grpc.RpcError, call: str, deadline_seconds: float) -> KybernateError:
        theirs = error_from(error)
        if theirs is not None:
            return theirs
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        reason = (error.details() if isinstance(error, grpc.Call) else "") or "no reason given"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return AgentDeadlineError(socket=self.socket_path, call=call, seconds=deadline_seconds)
        if code is grpc.StatusCode.UNAVAILABLE:
            remedy = "It ended or was restarted during the call; look with `kybernate get` what became of it."
            return NoAgentError(socket=self.socket_path, reason=reason, remedy=remedy)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            reason = "it is older than this client"
        return AgentFailedError(socket=self.socket_path, call=call, code=code.name, reason=reason)


def _probe(path: str) -> None:
    """Connect and hang up: the kernel's own errors say more than gRPC's UNAVAILABLE."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(QUICK_SECONDS)
        probe.connect(path)


def _no_agent(path: Path, error: OSError) -> NoAgentError:
    elsewhere = f"If it listens elsewhere, say so with --socket or {SOCKET_VARIABLE}."
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "Use the account that the agent runs as, usually root (sudo)."
    elif error.errno == errno.ECONNREFUSED:
        remedy = f"It has ended and left its socket; start it again (`kybernate agent`). {elsewhere}"
    else:
        remedy = f"Start it (`kybernate agent`, as root). {elsewhere}"
    return NoAgentError(socket=path, reason=os.strerror(error.errno) if error.errno else str(error), remedy=remedy)
