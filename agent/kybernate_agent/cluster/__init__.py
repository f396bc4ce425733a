"""The agent of a cluster's node: which pods are instances, what it answers the hook, what it tells the API server.

    GpuInstances, Pods of this node ──informers──> source ──> actors (the same as without a cluster)
    the hook's create, terminate ──> source: admission, departure (pure) ──> actors
    actors ──changed──> status: one small writer for each GpuInstance; Events

The whole story: docs/design/03_agent.md.
"""
