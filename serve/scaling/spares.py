"""Processes that wait with a task's libraries imported (serve.autoscale.spare_workers).

Ray gives an actor a worker process of the same job, environment and kind of resources that has done its tasks and
idles, before it starts a new one. So a task that imports what a replica will need, submitted by the controller, whose
replicas they will be, leaves just such a process behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Spares:
    """Belongs to the controller's thread."""

    def keep(self, applications: Mapping[str, Mapping[str, Any]]) -> None:
        """See to the spares of these applications, by their keys."""
