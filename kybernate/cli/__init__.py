"""`kybernate`, the program: one command per file in `commands/`, each a summary, its arguments, and a `run`.

A command talks to the agent through `kybernate.agentapi.client` and prints; what it prints is made in `view` (what an
instance looks like) and `output` (tables, JSON, YAML, colours). Answers go to stdout, everything else to stderr. The
exit status is that of the error's class, see `exit_codes`.
"""
