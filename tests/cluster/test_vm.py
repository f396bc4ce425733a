"""A node with systemd: its cgroup driver, cgroup v2 with every controller, a real reboot and a power cut, in a VM."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from vm_bed import CPU_MAX, LIMIT, MEMORY_BYTES, VmBed, VmInstance, eventually, open_vm

from kybernate.lab.cluster import Cluster
from kybernate.lab.process import argv_of, pids

CONTROLLERS = {"cpu", "cpuset", "io", "memory", "pids"}


@pytest.fixture(scope="module")
def vm() -> Iterator[VmBed]:
    with open_vm() as made:
        yield made


def test_the_node_has_the_systemd_driver_and_cgroup_v2_alone(vm: VmBed) -> None:
    node = vm.node
    kubelet = vm.bed.cluster.api.get(f"/api/v1/nodes/{node.name}/proxy/configz")["kubeletconfig"]
    assert kubelet["cgroupDriver"] == "systemd"
    dumped = tomllib.loads(node.run(["containerd", "config", "dump"]))
    runtimes = dumped["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert {name: it["options"]["SystemdCgroup"] for name, it in runtimes.items()} == {"runc": True, "kybernate": True}
    assert node.run(["stat", "-f", "-c", "%T", "/sys/fs/cgroup"]) == "cgroup2fs\n"
    assert " cgroup " not in node.run(["cat", "/proc/self/mountinfo"])
    assert set(node.run(["cat", "/sys/fs/cgroup/cgroup.controllers"]).split()) >= CONTROLLERS
    assert node.run(["cat", "/proc/1/comm"]) == "systemd\n"
    assert node.run(["systemctl", "is-active", "containerd", "kubelet", "kube-proxy"]).split() == ["active"] * 3


def check_limits(one: VmInstance, found: dict[str, str]) -> None:
    assert found["path"].startswith("/sys/fs/cgroup/kubepods.slice/")
    assert found["memory.max"] == found["MemoryMax"] == str(MEMORY_BYTES)
    assert found["cpu.max"] == CPU_MAX
    assert found["ActiveState"] == "active"
    pids = one.vm.node.run(["cat", f"{found['path']}/cgroup.procs"]).split()
    assert [one.vm.node.run(["cat", f"/proc/{pid}/comm"]).strip() for pid in pids] == ["python3"]


def test_it_sleeps_and_wakes_in_its_scope_and_leaves_nothing(vm: VmBed) -> None:
    before = vm.remains()
    with vm.running("vm-sleeper") as (one,):
        first, uid, container, limits = one.call(), one.pod["metadata"]["uid"], one.container(), one.limits()
        check_limits(one, limits)
        count = first.count
        for verb, state, tier in (("suspend", "Suspended", "RAM"), ("park", "Parked", "NVME")):
            for call in (one.call_service, one.call):
                one.goes_to(verb, state, tier)
                assert len(one.processes()) == (1 if tier == "RAM" else 0)
                assert one.ready()
                answer, count = call(), count + 1
                assert (answer.count, answer.born) == (count, first.born)
                one.wait("Running", LIMIT)
                assert one.limits() == limits
                check_limits(one, limits)
        assert (one.pod["metadata"]["uid"], one.container(), one.restarts()) == (uid, container, 0)
        assert one.ready()
        one.goes_to("park", "Parked", "NVME")  # deleted as it sleeps
    vm.await_nothing_left(before)


def test_after_a_reboot_what_was_parked_is_parked(vm: VmBed) -> None:
    """What ran begins anew; so does what slept in memory, and its loss is said."""
    with vm.running("vm-parked", "vm-awake", "vm-frozen") as instances:
        parked, awake, frozen = instances
        before = {one: (one.call(), one.container()) for one in instances}
        parked.goes_to("park", "Parked", "NVME")
        frozen.goes_to("suspend", "Suspended", "RAM")
        boot = vm.node.machine.boot_id()
        vm.node.machine.reboot()
        assert vm.node.machine.boot_id() != boot
        vm.agent_ready()
        for one in instances:
            one.await_another_container(before[one][1])
            one.wait("Parked" if one is parked else "Running", LIMIT)
        eventually(parked.ready, LIMIT, "what is parked is ready")
        assert parked.processes() == []
        assert parked.status["tier"] == "NVME"
        after = {one: one.serving() for one in instances}
        assert (after[parked].count, after[parked].born) == (before[parked][0].count + 1, before[parked][0].born)
        for one in (awake, frozen):
            assert after[one].count == 1
            assert after[one].born != before[one][0].born
        assert [("StateLost" in one.events()) for one in instances] == [False, False, True]


def test_after_a_power_cut_what_was_parked_just_before_is_parked(vm: VmBed) -> None:
    """Images, manifest, pins and journal are on the disk, not in a cache, when it says that it is parked."""
    with vm.running("vm-dark") as (one,):
        first, container = one.call(), one.container()
        one.goes_to("park", "Parked", "NVME")
        vm.node.machine.cut_power()
        vm.node.machine.start()
        vm.agent_ready()
        one.await_another_container(container)
        one.wait("Parked", LIMIT)
        answer = one.serving()
        assert (answer.count, answer.born) == (first.count + 1, first.born)
        check_limits(one, one.limits())
        assert "StateLost" not in one.events()


def test_what_a_killed_run_left_is_found(vm: VmBed) -> None:
    """The last one: afterwards there is no virtual machine. `./dev clean` does the same."""
    folder = vm.bed.cluster.folder
    mine = [pid for pid in pids() if any(str(folder) in word for word in argv_of(pid))]
    assert any(Path(argv_of(pid)[0]).name == "qemu-system-x86_64" for pid in mine)
    assert any(argv_of(pid)[0].startswith("ssh: ") for pid in mine)
    Cluster.open(folder).down()
    assert [pid for pid in pids() if any(str(folder) in word for word in argv_of(pid))] == []
    assert not folder.exists()
