"""The client runtime of Kubernetes that controller, agent and CLI speak to the API server with.

    connection  requests, sent: deadlines, what failures mean                 credentials   who we are to it
    client      the API server's verbs, typed                                 proxy, kubeconfig
    watch       one kind of objects, followed: a state machine                election      who of several acts
    cache       what was last seen of a kind, with indexes                    events        what people are told
    queue       what is to be reconciled, controller: who reconciles it

    watch ──Restarted, Applied, Deleted──> cache ──key──> queue ──key──> run_loop(reconcile) ──apply──> API server

Import the modules; this package loads none of them, so that a program pays for what it uses. The whole story:
docs/design/03_kube.md.
"""
