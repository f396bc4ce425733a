"""What a GpuWorkload's author asked for, in the form that decisions use."""

from __future__ import annotations

from kybernate.api import GpuWorkload
from kybernate_agent.instance import Policy, Wanted


def wanted_of(workload: GpuWorkload) -> Wanted:
    idle, wake = workload.spec.idle, workload.spec.wake
    return Wanted(
        container=workload.container.name,
        namespace=workload.metadata.namespace,
        image=workload.container.image,
        ports=workload.ports,
        policy=Policy(
            suspend_after=idle.suspend_after,
            park_after=idle.park_after,
            drain_timeout=idle.drain_timeout,
            max_in_flight=idle.max_in_flight,
            wake_timeout=wake.timeout,
            wake_on_exec=wake.on_exec,
        ),
    )
