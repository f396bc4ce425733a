"""Kybernate: suspend and resume for workloads, and what is built on that pair of verbs."""

__version__ = "0.1.0"
