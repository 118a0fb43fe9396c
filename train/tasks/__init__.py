"""How each task learns: one small class a modality, named by the row of `cluster.tasks`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cluster import tasks


def trainer(task: str) -> Any:
    """A new object of the class that trains `task`. Raises InputError where there is none."""
    row = tasks.get(task)
    module, _, name = row.trainer.partition(":")
    return getattr(import_module(module), name)()
