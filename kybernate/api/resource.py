"""What the API server has to know of a kind beside its type: how it is called, and what `kubectl get` shows of it."""

from __future__ import annotations

from dataclasses import dataclass

from kybernate.api.objects import Object


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; `wide`: of `kubectl get -o wide` only."""

    name: str
    path: str
    description: str
    type: str = "string"
    wide: bool = False


@dataclass(frozen=True)
class Scale:
    """Paths of the scale subresource, which `kubectl scale` and a HorizontalPodAutoscaler use."""

    spec_replicas: str
    status_replicas: str
    selector: str


@dataclass(frozen=True)
class CustomResource:
    """One kind as a cluster serves it. `selectable`: fields that a list or a watch can ask for (a field selector)."""

    type: type[Object]
    plural: str
    short: str
    columns: tuple[Column, ...]
    namespaced: bool = True
    selectable: tuple[str, ...] = ()
    scale: Scale | None = None

    @property
    def kind(self) -> str:
        """A type of another name than its kind has the kind's name as its field's default."""
        return self.type.__name__.removesuffix("Object")


def ready(description: str) -> Column:
    return condition("Ready", description)


def condition(name: str, description: str) -> Column:
    """The status of the condition of that name."""
    return Column(name, f'.status.conditions[?(@.type=="{name}")].status', description)


AGE = Column("Age", ".metadata.creationTimestamp", "Time since it was made.", type="date")
