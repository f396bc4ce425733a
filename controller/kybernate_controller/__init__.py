"""The controller: makes pods and GpuInstances of GpuWorkloads, and says what has become of them.

    __main__    flags, election, end             controller   informers, queue: which workload is looked at when
    config      what can be set                  reconcile    one look: snapshot -> plan -> do, until nothing is left
    health      /healthz /readyz /metrics        doing        one write for each kind of action

    plan        what is to be done: pure, out of these parts
      objects     what is read of pods, nodes, instances      actions    what can be done
      replica     one ordinal: its pod, its GpuInstance       template   the pod that an instance is
      scale       which ordinals exist                        rollout    who takes a changed template, and when
      eviction    where an instance's state lies              serving    who stays in the Service
      instances   the next step of one ordinal                resize     requests of a parked pod
      status      counts and conditions

Deciding and doing meet in `plan.plan(snapshot, now) -> actions` alone. The whole story: docs/design/03_controller.md.
"""
