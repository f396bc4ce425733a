"""What can go wrong between us and the API server: leaves of `kybernate.errors`, all of them an ApiError.

    ApiError
    ├── ApiNotFoundError      no such object                  ├── ExpiredError         410: list anew
    ├── KindMissingError      the kind is not served          ├── TooManyRequestsError 429, after waiting in vain
    ├── ConflictError         changed meanwhile, owned        ├── ServerError          5xx
    ├── AlreadyExistsError                                    ├── UnreachableError     no connection, or it broke
    ├── UnauthorizedError     who we are is not accepted      ├── ApiDeadlineError     no answer in time
    ├── ForbiddenError        we may not                      └── ResponseError        an answer not understood
    └── ApiInvalidError       the object is refused
    CredentialsError          kubeconfig, token or plugin: no ApiError, nothing was sent

`retry_after` is the server's word, in seconds, when to come again; None where it said nothing. "No such object" and
"this kind is not served" are both HTTP 404 and must never be taken for each other: the first is knowledge.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kybernate.errors import (
    DeadlineError,
    ExternalError,
    InvalidError,
    KybernateError,
    NotFoundError,
    RefusedError,
)


class ApiError(KybernateError):
    """{call}: {problem}"""

    def __init__(self, *, retry_after: float | None = None, **fields: Any) -> None:
        self.retry_after = retry_after
        super().__init__(**fields)


class ApiNotFoundError(ApiError, NotFoundError):
    """{call}: {problem}. List what exists; the namespace may be another."""


class KindMissingError(ApiError, RefusedError):
    """{call}: the API server does not serve this kind ({problem}). Install Kybernate's CRDs, in this version."""


class ConflictError(ApiError, RefusedError):
    """{call}: {problem}. Read the object again and decide anew; a field that another manager owns is that one's."""


class AlreadyExistsError(ApiError, RefusedError):
    """{call}: {problem}. Choose another name, or change the one that exists."""


class UnauthorizedError(ApiError, RefusedError):
    """{call}: the API server does not accept these credentials ({problem}). Renew the token or certificate."""


class ForbiddenError(ApiError, RefusedError):
    """{call}: {problem}. Give this account a role that allows it."""


class ApiInvalidError(ApiError, InvalidError):
    """{call}: {problem}. Correct the object."""


class ExpiredError(ApiError, ExternalError):
    """{call}: {problem}. That version of the objects is gone; list anew."""


class TooManyRequestsError(ApiError, ExternalError):
    """{call}: the API server is busy, or a disruption budget forbids it now ({problem}). Try again later."""


class ServerError(ApiError, ExternalError):
    """{call}: the API server failed with HTTP {status} ({problem}). Look at its log; the call may have been done."""


class UnreachableError(ApiError, ExternalError):
    """{call}: {server} cannot be reached, or the connection broke ({problem}). Check address, network
    and certificates."""


class ApiDeadlineError(ApiError, DeadlineError):
    """{call}: no answer within {seconds:g} s. What was asked may still happen; look before you repeat it."""


class ResponseError(ApiError, ExternalError):
    """{call}: the answer is not understood ({problem}). API server and Kybernate may differ in version."""


class CredentialsError(InvalidError):
    """{source}: {problem}. Name a kubeconfig that works, or repair this one."""


class CredentialsDeadlineError(DeadlineError):
    """{source}: no credentials within {seconds:g} s; the exec plugin may wait for a person. Run it once by hand."""


class Cause(msgspec.Struct):
    """One reason why an object was refused."""

    field: str = ""
    message: str = ""
    reason: str = ""


class Details(msgspec.Struct, rename="camel"):
    """Which object a Status is about."""

    name: str = ""
    group: str = ""
    kind: str = ""
    causes: list[Cause] = []
    retry_after_seconds: int = 0


class Status(msgspec.Struct, rename="camel"):
    """Kubernetes' answer where it has no object to give (meta/v1 Status)."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: Details | None = None


_BY_CODE: dict[int, type[ApiError]] = {
    400: ApiInvalidError,
    401: UnauthorizedError,
    403: ForbiddenError,
    405: ApiInvalidError,
    406: ApiInvalidError,
    410: ExpiredError,
    413: ApiInvalidError,
    415: ApiInvalidError,
    422: ApiInvalidError,
    429: TooManyRequestsError,
}


def from_body(call: str, code: int, body: bytes, retry_after: float | None = None) -> ApiError:
    """The error of an answer with HTTP status `code`. Whoever is in between may have written the body: any bytes do."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError:
        status = Status(message=body[:200].decode(errors="replace").strip())
    return from_status(call, status, code, retry_after)


def from_status(call: str, status: Status, code: int = 0, retry_after: float | None = None) -> ApiError:
    """The error that `status` means; `code` is the HTTP status where the Status came with one of its own."""
    code = code or status.code or 500
    details = status.details or Details()
    if retry_after is None and details.retry_after_seconds:
        retry_after = float(details.retry_after_seconds)
    problem = (status.message or status.reason or f"HTTP {code}").rstrip(".")
    return _kind(code, status.reason, details)(
        call=call,
        problem=problem,
        status=code,
        reason=status.reason,
        causes=tuple(details.causes),
        retry_after=retry_after,
    )


def _kind(code: int, reason: str, details: Details) -> type[ApiError]:
    if code == 404:
        return ApiNotFoundError if details.name else KindMissingError
    if code == 409:
        return AlreadyExistsError if reason == "AlreadyExists" else ConflictError
    return _BY_CODE.get(code) or (ServerError if code >= 500 else ResponseError)
