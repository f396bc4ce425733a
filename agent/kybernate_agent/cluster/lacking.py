"""What a pod lacks that asks for our services and gets none: it runs as any other pod, and nobody would say why."""

from __future__ import annotations

from kybernate.api import names
from kybernate_agent.cluster.objects import Pod, containers_of

ASKING = (names.CONTAINERS, names.SUSPEND_AFTER, names.PARK_AFTER, names.PORTS)
ENDED = ("Succeeded", "Failed")


def lack_of(pod: Pod) -> str:
    """To be told to its author; empty where nothing is lacking, or nothing was asked for."""
    asked = [name for name in ASKING if name in pod.metadata.annotations]
    if not asked or pod.metadata.deletion_timestamp is not None or pod.status.phase in ENDED:
        return ""
    needs = []
    if pod.spec.runtime_class_name != names.RUNTIME_HANDLER:
        needs.append(f"runtimeClassName: {names.RUNTIME_HANDLER}")
    if not containers_of(pod):
        needs.append(f"the annotation {names.CONTAINERS} with the container that is to sleep")
    if not needs:
        return ""
    return f"its annotation {asked[0]} has no effect: it needs {' and '.join(needs)}; it runs but never sleeps"
