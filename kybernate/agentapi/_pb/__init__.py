"""Generated from agent.proto by `python -m kybernate.agentapi.generate`; not edited by hand."""
