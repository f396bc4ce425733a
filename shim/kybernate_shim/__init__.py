"""Launcher, hook and keeper between containerd and runc. Standard library only; see docs/design/01_keeper.md."""
