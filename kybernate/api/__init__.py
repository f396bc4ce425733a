"""What a person writes, as types: kinds, durations and quantities, names, and the loader of manifests.

text --yaml nodes--> decode (types, unknown and refused fields) --> rules (between fields) --> GpuWorkload
"""

from kybernate.api.gpuworkload import GpuWorkload
from kybernate.api.manifest import dump, load
from kybernate.api.problem import ManifestError, Problem
from kybernate.api.quantity import Duration, Quantity

__all__ = ["Duration", "GpuWorkload", "ManifestError", "Problem", "Quantity", "dump", "load"]
