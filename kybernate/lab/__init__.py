"""The lab: what the demo, the tests and the benchmarks need of a machine, and give back.

A lab is one folder for data, one for state, one containerd with its own sockets, one bridge with its own subnets, and
images that are made from what the machine has installed. It shares nothing with the containerd of the host but the
programs; `Containerd.stop` leaves nothing behind, also what an earlier run in the same folders left when it was killed.
"""

from kybernate.lab.containerd import Containerd
from kybernate.lab.images import Image, pause_image, python_image

__all__ = ["Containerd", "Image", "pause_image", "python_image"]
