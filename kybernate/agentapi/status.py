"""Our errors across gRPC: a call that fails on one side raises on the other what was raised there.

The status message is the error's sentence; the trailing metadata carry an ErrorDetail with the names of its classes
and its exit code. The receiving side may not know the leaf class (it stands in a room that only the agent has), so it
makes a class of that name below the nearest one that `kybernate.errors` has: `except RefusedError` works on both sides.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from kybernate import errors
from kybernate.agentapi._pb.agent_pb2 import ErrorDetail

METADATA_KEY = "kybernate-error-bin"

# gRPC refuses calls whose metadata exceed 8 KiB unless both sides are told otherwise; percent encoding triples bytes.
METADATA_LIMIT_BYTES = 64 * 1024
MESSAGE_LIMIT_BYTES = 16 * 1024

_CODES: list[tuple[type[errors.KybernateError], grpc.StatusCode]] = [
    (errors.InvalidError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.RefusedError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.StateLostError, grpc.StatusCode.DATA_LOSS),
    (errors.KybernateError, grpc.StatusCode.INTERNAL),
]
_BASES: dict[str, type[errors.KybernateError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.KybernateError)
}


def code_of(error: errors.KybernateError) -> grpc.StatusCode:
    """The gRPC status code that stands for `error`."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


def detail_of(error: errors.KybernateError) -> ErrorDetail:
    """What programs learn about `error`."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, errors.KybernateError)]
    return ErrorDetail(classes=kinds, exit_code=error.exit_code)


def message_of(error: errors.KybernateError) -> str:
    """What people read about `error`, cut to what a status may carry."""
    encoded = str(error).encode()
    if len(encoded) <= MESSAGE_LIMIT_BYTES:
        return str(error)
    return encoded[: MESSAGE_LIMIT_BYTES - 4].decode(errors="ignore") + " ..."


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.KybernateError) -> NoReturn:
    """End the call on the server's side with `error`; never returns (gRPC raises through the handler)."""
    metadata = ((METADATA_KEY, detail_of(error).SerializeToString()),)
    await context.abort(code_of(error), message_of(error), metadata)
    raise AssertionError("abort returned")


def error_from(rpc_error: grpc.RpcError) -> errors.KybernateError | None:
    """What the other side raised; None when the failure is gRPC's own (no connection, deadline, no detail)."""
    if not isinstance(rpc_error, grpc.Call):
        return None
    raw = dict(rpc_error.trailing_metadata() or ()).get(METADATA_KEY)
    if not isinstance(raw, bytes):
        return None
    detail = ErrorDetail.FromString(raw)
    base = next((_BASES[name] for name in detail.classes if name in _BASES), errors.KybernateError)
    name = detail.classes[0] if detail.classes else base.__name__
    kind = type(name, (base,), {"__doc__": "{message}", "exit_code": detail.exit_code or base.exit_code})
    error: errors.KybernateError = kind(rpc_error.details() or "")
    return error
