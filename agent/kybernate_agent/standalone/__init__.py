"""Standalone mode: what a kubelet does for a pod, done without one.

folder      GpuWorkload manifests in a folder, as static pods are
translate   a workload as the configurations that CRI takes; pure
pods        a pod's life: sandbox, container, volumes, cgroup, logs
cri         containerd's CRI socket, each call with a deadline
kubelet     whether a kubelet owns that socket already
logs        the container's log files, in CRI's format
"""
