"""A pod's traffic: who calls it, what waits for it, and whether anybody uses it. See docs/design/01_traffic.md."""

from .activity import Activity, Sample, fold
from .kubelet import Kubelet, Owner
from .netlink import NetlinkError, NetnsGoneError
from .nfqueue import QueueTakenError
from .pod import Mode, PodTraffic
from .rules import Probe, RulesDeadlineError, RulesError, probe
from .sockdiag import Socket, State, own_ports

__all__ = [
    "Activity",
    "Kubelet",
    "Mode",
    "NetlinkError",
    "NetnsGoneError",
    "Owner",
    "PodTraffic",
    "Probe",
    "QueueTakenError",
    "RulesDeadlineError",
    "RulesError",
    "Sample",
    "Socket",
    "State",
    "fold",
    "own_ports",
    "probe",
]
