"""All that a workload could leave on its node and in its cluster, to compare with what was there before.

Not containerd's records of ended sandboxes: those are the kubelet's, which takes them away once a minute.
"""

from __future__ import annotations

import contextlib
import json

from agent_in_cluster import PYTHON, eventually
from cluster_bed import ClusterBed
from product_bed import KINDS, LIMIT

from kybernate.errors import KybernateError

REMAINS = """
import glob, json, os, sqlite3, stat, subprocess, sys
def lines(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
def below(*tops, kind=None):
    return [path for top in tops for folder, inner, files in os.walk(top) for path in
            (os.path.join(folder, name) for name in [*inner, *files])
            if kind is None or kind(os.lstat(path).st_mode)]
found = {
    "cgroups": sorted({folder.split("/sys/fs/cgroup", 1)[1].partition(sys.argv[1])[2]
        for top in {*glob.glob("/sys/fs/cgroup/*" + sys.argv[1]), *glob.glob("/sys/fs/cgroup" + sys.argv[1])}
        for folder, _, _ in os.walk(top)}),
    "mounts": [line.split()[4] for line in open("/proc/self/mountinfo")],
    "namespaces": os.listdir("/run/netns") if os.path.isdir("/run/netns") else [],
    "links": [line.split()[1].partition("@")[0] for line in lines("ip", "-o", "link")],
    "rules": [line for line in lines("iptables-save") if line.startswith("-") and "KUBE-" not in line],
    "keepers": os.listdir("/run/kybernate/keepers"),
    "sockets": below("/run/kybernate", "/run/containerd", kind=stat.S_ISSOCK),
    "images": [p for p in below("/var/lib/kybernate/store", "/var/lib/kybernate/work") if not p.endswith(".lock")],
    "programs": [name for pid in os.listdir("/proc") if pid.isdigit() and os.path.exists(f"/proc/{pid}/comm")
                 and (name := open(f"/proc/{pid}/comm").read().strip()) in ("kyb-keeper", "criu", "runc")],
}
db = sqlite3.connect("file:/var/lib/kybernate/journal.db?mode=ro", uri=True)
found["rows"] = [r[0] for table in ("instance", "step")
                 for r in db.execute(f"select {'id' if table == 'instance' else 'instance'} from {table}")]
print(json.dumps({key: sorted(value) for key, value in found.items()}))
"""


def remains(bed: ClusterBed) -> dict[str, list[str]]:
    """All that a workload could leave, by what it is."""
    said = bed.node.run([PYTHON, "-c", REMAINS, bed.node.machine.cgroup])
    found: dict[str, list[str]] = json.loads(said)
    api = bed.cluster.api
    for path in (f"{KINDS}/gpuworkloads", f"{KINDS}/gpuinstances", "/api/v1/namespaces/default/pods"):
        found[path.rpartition("/")[2]] = sorted(item["metadata"]["name"] for item in api.get(path)["items"])
    return found


def left(bed: ClusterBed, before: dict[str, list[str]]) -> dict[str, list[str]]:
    """What there is more than before."""
    now = remains(bed)
    return {key: more for key, found in now.items() if (more := sorted(set(found) - set(before[key])))}


def await_nothing_left(bed: ClusterBed, before: dict[str, list[str]]) -> None:
    """The kubelet takes cgroups and folders away a while after the pod."""
    seen: list[dict[str, list[str]]] = []

    def nothing() -> bool:
        with contextlib.suppress(KybernateError, FileNotFoundError):
            seen[:] = [left(bed, before)]
            return not seen[0]
        return False

    try:
        eventually(nothing, LIMIT, "nothing is left")
    except AssertionError as error:
        raise AssertionError(f"{error}: {json.dumps(seen, indent=1)}") from None
