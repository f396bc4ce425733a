"""kill -9 of each program while calls go on: each call is answered in the end, and the state never goes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from product_bed import LIMIT, Product, Workload, eventually, processes_of
from product_caller import Caller
from test_agent_faults import keeper_of


def controller(product: Product, workload: Workload) -> None:
    product.controller.kill()
    product.controller.start()


def agent(product: Product, workload: Workload) -> None:
    product.agent.kill()
    product.agent.start()


def keeper(product: Product, workload: Workload) -> None:
    one = workload[0]
    container = one.container()
    os.kill(keeper_of(product.bed, one.name), signal.SIGKILL)
    one.restarted(container)


def kubelet(product: Product, workload: Workload) -> None:
    product.bed.node.machine.restart("kubelet", signal.SIGKILL)


def containerd(product: Product, workload: Workload) -> None:
    product.bed.node.machine.restart("containerd", signal.SIGKILL)


ALL = {kill.__name__: kill for kill in (controller, agent, keeper, kubelet, containerd)}
BUSY: dict[str, str] = {}
SLEEPY = {"suspendAfter": "300ms", "parkAfter": "100ms"}


@pytest.mark.parametrize("name", ALL)
def test_while_calls_go_on(product: Product, name: str) -> None:
    """One is called all the time, another sleeps between two calls."""
    kill: Callable[[Product, Workload], None] = ALL[name]
    with (
        product.workload(f"busy-{name}", idle=BUSY) as busy,
        product.workload(f"sleepy-{name}", idle=SLEEPY) as sleepy,
    ):
        ips = busy[0].ip, sleepy[0].ip
        uids = busy[0].uid, sleepy[0].uid
        with Caller(ips[0], 0.05) as often, Caller(ips[1], 1.0) as seldom:
            often.goes_on()
            seldom.goes_on(2)
            for workload in (busy, sleepy):
                kill(product, workload)
            for caller in (often, seldom):
                caller.goes_on()
        for caller in (often, seldom):
            caller.check()
            assert caller.refused == 0 or name == "keeper"
        assert (busy[0].uid, sleepy[0].uid) == uids
        for workload in (busy, sleepy):
            assert len(processes_of(workload.name)) <= 1
            workload.ready()


@pytest.mark.parametrize("with_agent", [False, True], ids=["alone", "with-the-agent"])
def test_a_keeper_in_the_midst_of_a_restore(product: Product, with_agent: bool) -> None:
    """The kubelet's next container is restored instead; the call that began it is answered."""
    ballast = {"env": [{"name": "MIB", "value": "64"}]}  # a restore takes long enough to be met
    with product.workload(f"half-{'both' if with_agent else 'one'}", container=ballast) as workload:
        one = workload[0]
        before, ip = one.serving(), one.ip
        one.order("park")
        container, pid = one.container(), keeper_of(product.bed, one.name)
        folder = product.bed.node.machine.path("/run/kybernate/keepers") / container.removeprefix("containerd://")
        with Caller(ip) as caller:
            eventually(lambda: '"restoring"' in (folder / "state.json").read_text(), LIMIT, "it is being restored")
            os.kill(pid, signal.SIGKILL)
            if with_agent:
                product.agent.kill()
                product.agent.start()
            caller.goes_on()
        caller.check()
        assert (caller.answers[0].count, caller.answers[0].born) == (before.count + 1, before.born)
        one.restarted(container)
        assert len(processes_of(workload.name)) == 1


def test_a_workload_that_comes_while_both_are_away(product: Product) -> None:
    product.controller.kill()
    product.agent.kill()
    with product.workload("patient", ready=False) as workload:
        product.controller.start()
        product.agent.start()
        workload.ready()
        assert workload[0].serving().count == 1
