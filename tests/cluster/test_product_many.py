"""Thirty instances of one workload on the node: all come up, sleep, are woken by calls, and end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from product_bed import Product, ask, eventually, processes_of
from product_remains import await_nothing_left, remains

PODS = 30
LIMIT = 300


def test_thirty_come_sleep_wake_and_go(product: Product) -> None:
    bed, before = product.bed, remains(product.bed)
    with product.workload(
        "many", ready=False, replicas=PODS, container={"env": [{"name": "MIB", "value": "1"}]}
    ) as many:
        try:
            many.ready(LIMIT)
            ips = {
                name: bed.cluster.api.get(f"/api/v1/namespaces/default/pods/{name}")["status"]["podIP"]
                for name in many.names()
            }
            assert len(set(ips.values())) == PODS
            born = {name: ask(ip).born for name, ip in ips.items()}
            many.patch({"idle": {"suspendAfter": "500ms", "parkAfter": "200ms"}})
            eventually(lambda: many.status.get("parked") == PODS, LIMIT, "all are parked")
            assert processes_of("many") == []
            many.patch({"idle": {"suspendAfter": "1h", "parkAfter": "1h"}})
            eventually(
                lambda: many.status.get("observedGeneration") == many.object["metadata"]["generation"], 60, "seen"
            )
            with ThreadPoolExecutor(PODS) as pool:
                after = dict(zip(ips, pool.map(lambda ip: ask(ip, seconds=LIMIT), ips.values()), strict=True))
            assert {name: answer.born for name, answer in after.items()} == born
            assert {answer.count for answer in after.values()} == {2}
            eventually(lambda: many.status.get("awake") == PODS, LIMIT, "all are awake")
            assert len(processes_of("many")) == PODS
            many.delete(wait=False)
            many.await_gone(LIMIT)
        finally:
            print(product.tell())
    await_nothing_left(bed, before)
