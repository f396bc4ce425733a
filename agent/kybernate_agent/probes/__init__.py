"""The kubelet's probes and hooks, and who answers them while the application sleeps. See docs/design/03_probes.md."""

from .answerer import Answerer, listener
from .declared import NOTHING, Declared, declared
from .execs import Entering, is_declared

__all__ = ["NOTHING", "Answerer", "Declared", "Entering", "declared", "is_declared", "listener"]
