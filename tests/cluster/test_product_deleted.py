"""A GpuWorkload is deleted at each moment of sleeping and waking: it ends at once, and nothing of it is left."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest
from agent_bed import ask
from product_bed import LIMIT, Product, Workload, await_collector, eventually, processes_of
from product_remains import await_nothing_left, remains

Before = dict[str, list[str]]


@pytest.fixture(scope="module")
def product(product: Product) -> Product:
    await_collector(product.bed)
    return product


@pytest.fixture(scope="module")
def before(product: Product) -> Before:
    """What there is without any workload."""
    return remains(product.bed)


def ends(product: Product, workload: Workload) -> None:
    workload.await_gone()
    assert processes_of(workload.name) == []


@pytest.mark.parametrize("asleep", ["awake", "suspend", "park"])
def test_at_rest(product: Product, before: Before, asleep: str) -> None:
    with product.workload(f"rest-{asleep}") as workload:
        workload[0].serving()
        if asleep != "awake":
            workload[0].order(asleep)
        workload.delete(wait=False)
        ends(product, workload)
    await_nothing_left(product.bed, before)


def sleep(verb: str) -> Callable[[Product, Workload], None]:
    def order(product: Product, workload: Workload) -> None:
        product.bed.kubectl("annotate", "gi", f"{workload.name}-0", f"kybernate.io/order={verb} now", "--overwrite")

    return order


def call(product: Product, workload: Workload) -> None:
    """Somebody calls, and is not answered any more."""
    ip = workload[0].ip

    def one_call() -> None:
        with contextlib.suppress(OSError, ValueError):
            ask(ip, seconds=10)

    threading.Thread(target=one_call, daemon=True).start()


MOMENTS = {
    "suspending": ("", ("after", "suspend", "freeze"), sleep("suspend")),
    "begins-to-park": ("", ("after", "park", "stage"), sleep("park")),
    "in-the-midst-of-the-dump": ("", ("after", "park", "dump"), sleep("park")),
    "at-the-commit": ("", ("before", "park", "commit"), sleep("park")),
    "ending-the-processes": ("", ("after", "park", "end-processes"), sleep("park")),
    "resuming-from-RAM": ("suspend", ("after", "resume", "thaw"), call),
    "resuming-from-NVME": ("park", ("after", "resume", "restore"), call),
    "letting-calls-in": ("park", ("after", "resume", "release"), call),
    "proving": ("park", ("after", "prove", "retire"), call),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_on_the_way(product: Product, before: Before, moment: str) -> None:
    first, stop, begin = MOMENTS[moment]
    with product.workload(moment.lower()) as workload:
        workload[0].serving()
        if first:
            workload[0].order(first)
        product.agent.stops_at(*stop)
        begin(product, workload)
        product.agent.await_stopped()
        workload.delete(wait=False)
        eventually(lambda: "deletionTimestamp" in workload[0].pod["metadata"], LIMIT, "its pod is being deleted")
        product.agent.go_on()
        ends(product, workload)
    await_nothing_left(product.bed, before)


def test_while_it_starts(product: Product, before: Before) -> None:
    with product.workload("begins", ready=False) as workload:
        product.agent.stops_at("after", "adopt", "adopt")
        product.agent.await_stopped()
        workload.delete(wait=False)
        eventually(lambda: "deletionTimestamp" in workload[0].pod["metadata"], LIMIT, "its pod is being deleted")
        product.agent.go_on()
        ends(product, workload)
    await_nothing_left(product.bed, before)


def test_before_its_container_is_made(product: Product, before: Before) -> None:
    with product.workload("unborn", ready=False) as workload:
        eventually(lambda: workload[0].pod, LIMIT, "its pod is there")
        workload.delete(wait=False)
        ends(product, workload)
    await_nothing_left(product.bed, before)


def test_while_its_pod_cannot_be_scheduled(product: Product, before: Before) -> None:
    with product.workload("nowhere", ready=False, pod={"nodeSelector": {"there": "is-none"}}) as workload:
        eventually(lambda: workload[0].object, LIMIT, "its instance is there")
        workload.delete(wait=False)
        ends(product, workload)
    await_nothing_left(product.bed, before)
