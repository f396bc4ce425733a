"""Generated from cri.proto by `python -m kybernate_agent.standalone.generate`; not edited by hand."""
