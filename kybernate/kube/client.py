"""The API server's verbs: one method for each, with types, a deadline and typed errors (`connection` says which).

Objects go in as dicts or msgspec structs and come out as the type that the caller names (or that went in): only the
fields of that type are decoded, which is what makes ten thousand pods cheap. Names and namespaces are taken from the
object where the caller names none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, overload

import msgspec

from kybernate.api.objects import Object, builtins, decode
from kybernate.kube.connection import Connection, Request
from kybernate.kube.errors import ExpiredError, ResponseError
from kybernate.kube.resource import Resource

PAGE = 500
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

T = TypeVar("T")
R = TypeVar("R")


class ListMetadata(Object):
    """Where a list stands."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class Page(Object, Generic[T]):
    """A part of a list; `items` is null where a server has none."""

    metadata: ListMetadata = msgspec.field(default_factory=ListMetadata)
    items: list[T] | None = None


@dataclass
class Listed(Generic[T]):
    """Objects as they were, all at one moment, at `resource_version`."""

    items: list[T]
    resource_version: str


class Client(Connection):
    """Open between `async with`; safe for any number of tasks of one event loop."""

    async def get(
        self,
        resource: Resource,
        kind: type[T],
        name: str,
        namespace: str | None = None,
        *,
        deadline_seconds: float | None = None,
    ) -> T:
        """One object, as it is now. Raises ApiNotFoundError and the errors of `request`."""
        call = Request("GET", "get", resource.path(namespace, name), str(resource))
        return _decoded(call, await self.request(call, deadline_seconds=deadline_seconds), kind)

    async def list(
        self,
        resource: Resource,
        kind: type[T],
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        page: int = PAGE,
        transform: Callable[[T], T] | None = None,
        deadline_seconds: float | None = None,
    ) -> Listed[T]:
        """All objects, as they are now (never out of an API server's stale cache), of all namespaces if None is named.

        Fetched in pages of `page`, each through `transform`; the deadline holds for each. Where the first page's
        version has gone before the last page is asked for, all come once more and in one piece.
        """
        query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        path = resource.path(namespace)
        items: list[T] = []
        version, more = "", ""
        while True:
            size = {"limit": str(page)} if page else {}
            call = Request("GET", "list", path, str(resource), _given({**query, **size, "continue": more}))
            try:
                body = await self.request(call, deadline_seconds=deadline_seconds)
            except ExpiredError:
                if not more:
                    raise
                items, more, page = [], "", 0
                continue
            part = _decoded(call, body, Page[kind])  # type: ignore[valid-type]
            items += (part.items or ()) if transform is None else map(transform, part.items or ())
            version, more = version or part.metadata.resource_version, part.metadata.continue_
            if not more:
                return Listed(items, part.metadata.resource_version or version)

    async def version_of(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        deadline_seconds: float | None = None,
    ) -> str:
        """The version at which a list of these objects would be now; costs one object."""
        query = _given({"labelSelector": label_selector, "fieldSelector": field_selector, "limit": "1"})
        call = Request("GET", "list", resource.path(namespace), str(resource), query)
        body = await self.request(call, deadline_seconds=deadline_seconds)
        return _decoded(call, body, Page[Any]).metadata.resource_version

    @overload
    async def create(self, resource: Resource, object: T, namespace: str | None = None) -> T: ...
    @overload
    async def create(self, resource: Resource, object: Any, namespace: str | None = None, *, into: type[R]) -> R: ...
    async def create(
        self, resource: Resource, object: Any, namespace: str | None = None, *, into: type[Any] | None = None
    ) -> Any:
        """Create `object`; what the server made of it, as `into` or the type that was given.

        Raises AlreadyExistsError.
        """
        value = _complete(object, resource)
        path = resource.path(namespace or value["metadata"].get("namespace"))
        call = Request("POST", "create", path, str(resource), body=_encoded(value))
        return _decoded(call, await self.request(call), into or type(object))

    @overload
    async def replace(
        self, resource: Resource, object: T, namespace: str | None = None, *, subresource: str | None = None
    ) -> T: ...
    @overload
    async def replace(
        self,
        resource: Resource,
        object: Any,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        into: type[R],
    ) -> R: ...
    async def replace(
        self,
        resource: Resource,
        object: Any,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """Put `object` whole in place of what is there; with its resourceVersion only if nothing changed meanwhile.

        Raises ConflictError, ApiNotFoundError.
        """
        value = _complete(object, resource)
        path = _path_of(resource, value, namespace, subresource)
        call = Request("PUT", "update", path, _counted(resource, subresource), body=_encoded(value))
        return _decoded(call, await self.request(call), into or type(object))

    @overload
    async def apply(
        self,
        resource: Resource,
        object: T,
        namespace: str | None = None,
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> T: ...
    @overload
    async def apply(
        self,
        resource: Resource,
        object: Any,
        namespace: str | None = None,
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
        into: type[R],
    ) -> R: ...
    async def apply(
        self,
        resource: Resource,
        object: Any,
        namespace: str | None = None,
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """Server-side apply: `manager` owns the fields of `object` from now on, and no others.

        Creates what is not there (a subresource never does). With `force` fields of other managers become ours;
        without, ConflictError names them. With metadata.uid or resourceVersion it is refused where they differ.
        """
        value = _complete(object, resource)
        call = Request(
            "PATCH",
            "apply",
            _path_of(resource, value, namespace, subresource),
            _counted(resource, subresource),
            {"fieldManager": manager, "force": str(force).lower()},
            _encoded(value),
            APPLY_PATCH,
        )
        return _decoded(call, await self.request(call), into or type(object))

    async def merge_patch(
        self,
        resource: Resource,
        kind: type[T],
        name: str,
        patch: Mapping[str, Any],
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        manager: str | None = None,
    ) -> T:
        """JSON merge patch: fields given are set, null ones removed, lists replaced. Raises ApiNotFoundError.

        With metadata.resourceVersion in the patch ConflictError says that the object changed meanwhile.
        """
        call = Request(
            "PATCH",
            "patch",
            resource.path(namespace, name, subresource),
            _counted(resource, subresource),
            _given({"fieldManager": manager or ""}),
            _encoded(patch),
            MERGE_PATCH,
        )
        return _decoded(call, await self.request(call), kind)

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
        propagation: Literal["Foreground", "Background", "Orphan"] | None = None,
    ) -> None:
        """Ask for the object's deletion; with finalizers or a grace period it goes later.

        Raises ApiNotFoundError; ConflictError where it has another `uid` or `resource_version`.
        """
        preconditions = _given({"uid": uid or "", "resourceVersion": resource_version or ""})
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": preconditions or None,
            "gracePeriodSeconds": grace_seconds,
            "propagationPolicy": propagation,
        }
        body = _encoded({key: value for key, value in options.items() if value is not None})
        await self.request(Request("DELETE", "delete", resource.path(namespace, name), str(resource), body=body))


def _given(query: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in query.items() if value}


def _counted(resource: Resource, subresource: str | None) -> str:
    return f"{resource}/{subresource}" if subresource else str(resource)


def _complete(object: Any, resource: Resource) -> dict[str, Any]:
    """`object` as a dict that says what it is."""
    value: dict[str, Any] = builtins(object)
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {}} | value


def _path_of(resource: Resource, value: Mapping[str, Any], namespace: str | None, subresource: str | None) -> str:
    metadata = value["metadata"]
    return resource.path(namespace or metadata.get("namespace"), metadata.get("name", ""), subresource)


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _decoded(call: Request, body: bytes, kind: type[T]) -> T:
    try:
        return decode(body, kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ResponseError(call=call, problem=str(error)) from error
