"""What the controller knows of one workload beside its caches: answers that no watch tells, and what it has ended.

A refusal is believed for `BELIEVED_SECONDS`, or until the workload's spec changes; then it is tried again. What a
cluster does not have at all is not asked for again meanwhile: each parked pod would cost a request every time. All of
it is lost when the controller ends, and learned anew at the cost of a request each.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from kybernate_controller.replica import Findings

BELIEVED_SECONDS = 30.0
YOUNG_SECONDS = 10.0
"""A pod that a kubelet refuses (its devices, its topology) would else be made again as fast as it is refused."""


@dataclass
class Known:
    """Of one workload."""

    generation: int = 0
    findings: Findings = field(default_factory=Findings)
    ended: set[str] = field(default_factory=set)
    """Uids whose deletion was asked for, as long as a cache shows them."""
    gone: set[str] = field(default_factory=set)
    """Uids of what no longer exists, as long as a cache shows them."""
    made: dict[str, float] = field(default_factory=dict)
    """When pods were made, by name, while they are young."""
    doubts_at: float | None = None
    """When refusals are no longer believed."""
    now: float = 0.0

    def look(self, generation: int, now: float, shown: Collection[str]) -> None:
        """Begin a look: forget what is outdated. `shown`: the uids that the caches show."""
        self.now = now
        if generation != self.generation or (self.doubts_at is not None and now >= self.doubts_at):
            accepted = [name for name, problem in self.findings.templates.items() if not problem]
            self.findings = Findings(templates=dict.fromkeys(accepted, ""))
            self.doubts_at = None
        self.generation = generation
        self.made = {name: at for name, at in self.made.items() if now - at < YOUNG_SECONDS}
        self.findings.young = frozenset(self.made)
        self.findings.unsized = {uid: why for uid, why in self.findings.unsized.items() if uid in shown}
        self.ended.intersection_update(shown)
        self.gone.intersection_update(shown)

    @property
    def empty(self) -> bool:
        """Nothing is lost with it."""
        found = self.findings
        learned = found.templates or found.taken or found.refused or found.unsized
        return not (learned or self.ended or self.gone or self.made)

    def again_in(self, now: float) -> float | None:
        """Seconds until a refusal is to be tried again, or a pod is no longer young."""
        times = [at + YOUNG_SECONDS for at in self.made.values()]
        times += [] if self.doubts_at is None else [self.doubts_at]
        return max(0.0, min(times) - now) if times else None

    def make(self, name: str) -> None:
        """A pod was made."""
        self.made[name] = self.now

    def accept_template(self, template_hash: str) -> None:
        self.findings.templates = {template_hash: ""}

    def said(self) -> None:
        """The status tells of an accepted template now, whoever reads it."""
        refused = {name: problem for name, problem in self.findings.templates.items() if problem}
        self.findings.templates = refused

    def refuse_template(self, template_hash: str, why: str) -> None:
        self.findings.templates = {template_hash: why}
        self._doubt()

    def refuse_pod(self, ordinal: int, why: str) -> None:
        self.findings.refused[ordinal] = why
        self._doubt()

    def refuse_resize(self, uid: str, why: str, *, lasting: bool = False) -> None:
        """`lasting`: nothing that may be otherwise in a while."""
        self.findings.unsized[uid] = why
        if not lasting:
            self._doubt()

    def take(self, ordinal: int, who: str) -> None:
        self.findings.taken[ordinal] = who
        self._doubt()

    def _doubt(self) -> None:
        if self.doubts_at is None:
            self.doubts_at = self.now + BELIEVED_SECONDS
