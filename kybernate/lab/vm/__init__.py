"""A virtual machine as a node: systemd, cgroup v2 with every controller, a kernel of its own, and real reboots."""
