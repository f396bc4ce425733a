"""The agent's API: `agent.proto`, the stubs made of it, a client, and how errors cross the wire."""
