"""Runs, versions and lineage, kept by MLflow. MLflow itself is imported at the first call, not here."""

from cluster.registry.resolve import resolve
from cluster.registry.runs import Run
from cluster.registry.versions import Registry, Version, number

__all__ = ["Registry", "Run", "Version", "number", "resolve"]
