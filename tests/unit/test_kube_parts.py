"""Paths, errors, proxies, leases: what is pure in the client runtime."""

from __future__ import annotations

import json

import pytest

from kybernate.api.objects import Metadata
from kybernate.errors import InvalidError, KybernateError, NotFoundError, RefusedError
from kybernate.kube import proxy
from kybernate.kube.election import Lease, LeaseSpec, Observed
from kybernate.kube.errors import (
    AlreadyExistsError,
    ApiError,
    ApiInvalidError,
    ApiNotFoundError,
    ConflictError,
    CredentialsError,
    ExpiredError,
    ForbiddenError,
    KindMissingError,
    ResponseError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    from_body,
)
from kybernate.kube.resource import GPU_WORKLOADS, NODES, PODS, SegmentError


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (PODS.path("ns", "a"), "/api/v1/namespaces/ns/pods/a"),
        (PODS.path("ns", "a", "status"), "/api/v1/namespaces/ns/pods/a/status"),
        (PODS.path("ns"), "/api/v1/namespaces/ns/pods"),
        (PODS.path(), "/api/v1/pods"),
        (NODES.path(None, "n1"), "/api/v1/nodes/n1"),
        (NODES.path("ignored", "n1"), "/api/v1/nodes/n1"),
        (GPU_WORKLOADS.path("ns", "a"), "/apis/kybernate.io/v1alpha1/namespaces/ns/gpuworkloads/a"),
        (PODS.path("ns", "a?watch=1#x"), "/api/v1/namespaces/ns/pods/a%3Fwatch%3D1%23x"),
    ],
)
def test_paths(path: str, wanted: str) -> None:
    assert path == wanted


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../secrets/x", "%2e%2e"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(SegmentError):
        PODS.path("ns", name)
    with pytest.raises(SegmentError):
        PODS.path(name, "a") if name else PODS.path(None, "a")


def status(reason: str = "", code: int = 0, **details: object) -> bytes:
    return json.dumps({"kind": "Status", "message": "m.", "reason": reason, "code": code, "details": details}).encode()


@pytest.mark.parametrize(
    ("code", "body", "kind", "branch"),
    [
        (400, status(), ApiInvalidError, InvalidError),
        (401, status("Unauthorized"), UnauthorizedError, RefusedError),
        (403, status("Forbidden"), ForbiddenError, RefusedError),
        (404, status("NotFound", name="a", kind="pods"), ApiNotFoundError, NotFoundError),
        (404, status("NotFound"), KindMissingError, RefusedError),
        (404, b"404 page not found", KindMissingError, RefusedError),
        (409, status("AlreadyExists", name="a"), AlreadyExistsError, RefusedError),
        (409, status("Conflict", name="a"), ConflictError, RefusedError),
        (410, status("Expired"), ExpiredError, KybernateError),
        (410, b"", ExpiredError, KybernateError),
        (422, status("Invalid", name="a"), ApiInvalidError, InvalidError),
        (429, b"", TooManyRequestsError, KybernateError),
        (500, b"\xff\xfe", ServerError, KybernateError),
        (504, status("Timeout"), ServerError, KybernateError),
        (302, b"", ResponseError, KybernateError),
        (418, b"[]", ResponseError, KybernateError),
    ],
)
def test_each_answer_is_its_own_error(
    code: int, body: bytes, kind: type[ApiError], branch: type[KybernateError]
) -> None:
    error = from_body("get /x", code, body)
    assert type(error) is kind
    assert isinstance(error, branch)
    assert str(error).startswith("get /x: ")
    assert "{" not in str(error)
    assert ".." not in str(error)


def test_the_field_messages_and_the_wait_come_along() -> None:
    body = status(
        "Invalid", 422, name="a", causes=[{"field": "spec.x", "message": "bad", "reason": "FieldValueInvalid"}]
    )
    error = from_body("create /x", 422, body)
    assert [(cause.field, cause.message) for cause in error.causes] == [("spec.x", "bad")]
    assert error.retry_after is None
    assert from_body("x", 429, status("TooManyRequests", retryAfterSeconds=3)).retry_after == 3.0
    assert from_body("x", 429, status("TooManyRequests", retryAfterSeconds=3), retry_after=7.0).retry_after == 7.0
    assert error.exit_code == 2


PROXIES = {"HTTPS_PROXY": "http://proxy:3128", "http_proxy": "plain:80"}


@pytest.mark.parametrize(
    ("server", "no_proxy", "used"),
    [
        ("https://api.example.io:6443", "", "http://proxy:3128"),
        ("http://api.example.io", "", "http://plain:80"),
        ("https://api.example.io", "example.io", None),
        ("https://api.example.io", ".example.io", None),
        ("https://api.example.io", "*.example.io", None),
        ("https://example.io", ".example.io", "http://proxy:3128"),
        ("https://badexample.io", "example.io", "http://proxy:3128"),
        ("https://api.example.io:6443", "api.example.io:6443", None),
        ("https://api.example.io:6443", "api.example.io:443", "http://proxy:3128"),
        ("https://10.152.183.1", "other, 10.152.0.0/16", None),
        ("https://10.153.0.1", "10.152.0.0/16,broken/99", "http://proxy:3128"),
        ("https://[fd00::1]:443", "fd00::/8", None),
        ("https://[fd00::1]:443", "fd00::1", None),
        ("https://10.1.1.1", "*", None),
        ("https://127.0.0.1:6443", "", None),
        ("https://[::1]:6443", "", None),
        ("https://localhost:6443", "", None),
    ],
)
def test_the_environments_proxy(server: str, no_proxy: str, used: str | None) -> None:
    found = proxy.of_environment(server, PROXIES | {"NO_PROXY": no_proxy})
    assert (found.url if found else None) == used
    assert proxy.of_environment(server, {}) is None


def test_a_proxys_password_is_kept_apart_and_out_of_texts() -> None:
    found = proxy.parse("http://me:p%40ss@[fd00::1]:3128/")
    assert (found.url, found.user, found.password) == ("http://[fd00::1]:3128", "me", "p@ss")
    assert "ss" not in repr(found)
    for wrong in ("socks5://me:pass@x:1", "http://me:pass@:1", "http://me:pass@x:port"):
        with pytest.raises(CredentialsError) as refused:
            proxy.parse(wrong)
        assert "pass" not in str(refused.value)


@pytest.mark.parametrize(
    ("holder", "seconds", "after", "free"),
    [
        (None, None, 0, True),
        ("", 15, 0, True),
        ("me", 15, 0, True),
        ("other", 15, 14.9, False),
        ("other", 15, 15, True),
        ("other", 1, 1.5, True),
    ],
)
def test_a_lease_is_free_when_its_holder_was_silent_on_our_clock(
    holder: str | None, seconds: int | None, after: float, free: bool
) -> None:
    spec = LeaseSpec(holder_identity=holder, lease_duration_seconds=seconds, renew_time="2020-01-01T00:00:00.000000Z")
    assert Observed(Lease(metadata=Metadata(), spec=spec), at=1000.0).free_for("me", 1000.0 + after) is free
