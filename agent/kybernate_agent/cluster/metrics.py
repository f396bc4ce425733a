"""What the agent counts, in Prometheus' text format. Source: prometheus.io, exposition formats, version 0.0.4."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from kybernate_agent.actor import Actor
from kybernate_agent.instance import TIER, Record, Transition

WAKE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Fed at each change of an instance; what it has seen of its history is not counted again."""

    def __init__(self) -> None:
        self._transitions: Counter[tuple[str, str]] = Counter()
        self._wakes: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, *([0.0] * len(WAKE_BUCKETS))])
        self._seen: dict[str, float] = {}

    def changed(self, name: str, actor: Actor | None) -> None:
        if actor is None:
            self._seen.pop(name, None)
            return
        history = actor.record.history
        seen = self._seen.get(name, 0.0)
        for transition in history:
            if transition.at > seen:
                self._count(transition)
        self._seen[name] = max((t.at for t in history), default=seen)

    def known(self, records: Iterable[Record]) -> None:
        """What happened before this agent began is not its to count."""
        for record in records:
            self._seen[record.id] = max((t.at for t in record.history), default=0.0)

    def _count(self, transition: Transition) -> None:
        self._transitions[transition.verb, transition.outcome] += 1
        if transition.verb == "resume" and transition.outcome == "done":
            tier = "RAM" if transition.source == "Suspended" else "NVME"
            found = self._wakes[tier]
            found[0] += 1
            found[1] += transition.seconds
            for index, bound in enumerate(WAKE_BUCKETS):
                found[2 + index] += transition.seconds <= bound

    def text(
        self, actors: Iterable[Actor], status_writes: int, requests: Mapping[tuple[str, str], int] | None = None
    ) -> str:
        tiers: Counter[str] = Counter()
        stored = 0
        for actor in actors:
            tiers[TIER.get(actor.record.phase, "none")] += 1
            stored += actor.record.stored_bytes
        lines = [
            "# HELP kybernate_transitions_total Verbs that the agent has carried out, by outcome.",
            "# TYPE kybernate_transitions_total counter",
            *(
                f'kybernate_transitions_total{{verb="{verb}",outcome="{outcome}"}} {count}'
                for (verb, outcome), count in sorted(self._transitions.items())
            ),
            "# HELP kybernate_wake_seconds From the call to running processes, by the tier it came from.",
            "# TYPE kybernate_wake_seconds histogram",
        ]
        for tier, (count, total, *buckets) in sorted(self._wakes.items()):
            lines += [
                f'kybernate_wake_seconds_bucket{{tier="{tier}",le="{bound:g}"}} {number:g}'
                for bound, number in zip(WAKE_BUCKETS, buckets, strict=True)
            ]
            lines += [
                f'kybernate_wake_seconds_bucket{{tier="{tier}",le="+Inf"}} {count:g}',
                f'kybernate_wake_seconds_sum{{tier="{tier}"}} {total:g}',
                f'kybernate_wake_seconds_count{{tier="{tier}"}} {count:g}',
            ]
        lines += [
            "# HELP kybernate_instances Instances of this node, by the tier that their state is in (- while awake).",
            "# TYPE kybernate_instances gauge",
            *(f'kybernate_instances{{tier="{tier}"}} {tiers[tier]}' for tier in ("-", "RAM", "NVME", "none")),
            "# HELP kybernate_stored_bytes Bytes of images on this node's disk.",
            "# TYPE kybernate_stored_bytes gauge",
            f"kybernate_stored_bytes {stored}",
            "# HELP kybernate_status_writes_total Writes of a GpuInstance's status.",
            "# TYPE kybernate_status_writes_total counter",
            f"kybernate_status_writes_total {status_writes}",
            "# HELP kybernate_api_requests_total Requests to the API server.",
            "# TYPE kybernate_api_requests_total counter",
            *(
                f'kybernate_api_requests_total{{verb="{verb}",resource="{resource}"}} {count}'
                for (verb, resource), count in sorted((requests or {}).items())
            ),
        ]
        return "\n".join(lines) + "\n"
