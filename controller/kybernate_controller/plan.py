"""What is to be done for one workload: a pure function of what is known, and the time.

Called again after everything that was done, until it returns nothing. So it only ever takes the next step, in the
order in which steps do least harm: what a person asked to go goes, what is missing is made, then what is outdated is
replaced, then what may be better is improved, and last what is the case is said.
"""

from __future__ import annotations

from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate_controller import instances, placement, resize, rollout, scale, serving, status, target, template
from kybernate_controller.actions import Action, CheckTemplate, DeleteInstance, DeletePod, Event
from kybernate_controller.objects import STATE_LOST, Instance
from kybernate_controller.replica import Replica, Snapshot, in_order, replicas_of


def plan(snapshot: Snapshot, now: str) -> list[Action]:
    """The next actions. `now` is RFC 3339 text, for conditions that change."""
    workload = snapshot.workload
    if workload is None or workload.metadata.deletion_timestamp is not None:
        # Kubernetes' garbage collector ends what the workload owns; we only see to what no agent will.
        return list(instances.release(snapshot.instances, snapshot.nodes))
    found = replicas_of(snapshot)
    made = template.read(workload)
    chosen = scale.choose(snapshot.name, found, workload.spec.replicas)
    objection = made.problem or snapshot.findings.templates.get(made.hash, "")
    tried = _tried(workload, made.hash, found, snapshot)
    usable = tried and not objection
    avoid = placement.avoided(snapshot.refusing)
    actions: list[Action] = []
    for replica in in_order(found.values()):
        if replica.leaving:
            actions += instances.leave(workload, replica, snapshot.nodes)
    actions += instances.release(_left_behind(found, snapshot), snapshot.nodes)
    for replica in chosen.surplus:
        actions += _end(replica)
    awake = _kept_awake(workload, chosen.members)
    need = target.of(workload, chosen.members, awake)
    awake |= need.awake
    # Where one pod may not be made (a quota), the others need not be tried before it is tried again.
    may_create = usable and not snapshot.findings.refused
    for member in chosen.members:
        kept_awake = member.ordinal in awake
        young = member.name in snapshot.findings.young
        actions += instances.keep(
            workload, made, member, snapshot.nodes,
            keep_awake=kept_awake, may_create=may_create, avoid=avoid, young=young,
        )  # fmt: skip
    if usable:
        going = {action.uid for action in actions if isinstance(action, DeletePod)}
        actions += rollout.replace(workload, made.hash, chosen.members, going)
    actions += serving.steps(chosen.members, pack=workload.spec.traffic == "Pack", surplus=need.surplus)
    release = workload.spec.idle.release_requests
    actions += resize.steps(chosen.members, made.container, release=release, unsized=snapshot.findings.unsized)
    if not tried and not made.problem:
        pod = template.pod(workload, made, f"{snapshot.name}-0")
        actions.append(CheckTemplate(template_hash=made.hash, pod=pod))
        return actions  # the status waits for the answer
    view = status.View(workload, made, chosen, found, snapshot.nodes, snapshot.findings, objection)
    observed = status.of(view, now)
    if write := status.write(workload, observed):
        actions.append(write)
    return actions


def _tried(workload: GpuWorkloadObject, template_hash: str, found: dict[int, Replica], snapshot: Snapshot) -> bool:
    """Whether the API server has said what it thinks of the template: to us, by a pod, or to the one before us."""
    if template_hash in snapshot.findings.templates:
        return True
    if any(
        replica.pod and not rollout.outdated(replica, template_hash) and replica.alive for replica in found.values()
    ):
        return True
    said = next((c for c in workload.status.conditions if c.type == "TemplateInvalid"), None)
    return said is not None and said.status == "False" and said.observed_generation == workload.metadata.generation


def _left_behind(found: dict[int, Replica], snapshot: Snapshot) -> list[Instance]:
    """What an earlier workload of this name has left. Its names are waited for, and no agent may be there to end it."""
    ours = {replica.instance.metadata.uid for replica in found.values() if replica.instance is not None}
    return [i for i in snapshot.instances if i.spec.workload == snapshot.name and i.metadata.uid not in ours]


def _end(replica: Replica) -> list[Action]:
    """Scale down. The GpuInstance first: its deletion says for good that this one goes; its pod follows."""
    event = Event("InstanceDeleted", f"Ends {replica.name}: fewer replicas are wanted")
    if replica.instance is not None:
        meta = replica.instance.metadata
        return [DeleteInstance(name=meta.name, uid=meta.uid, event=event)]
    if replica.pod is not None and not replica.ending:
        pod = replica.pod.metadata
        return [DeletePod(name=pod.name, uid=pod.uid, keeps_state=False, event=event)]
    return []


def _kept_awake(workload: GpuWorkloadObject, members: list[Replica]) -> set[int]:
    """The ordinals that `idle.minAwake` keeps awake: who is it already, then who is awake, then the lowest."""

    def rank(member: Replica) -> tuple[bool, bool, int]:
        return (not member.held, not member.awake, member.ordinal)

    able = [member for member in members if member.state != STATE_LOST and not member.taken]
    return {member.ordinal for member in sorted(able, key=rank)[: workload.spec.idle.min_awake]}
