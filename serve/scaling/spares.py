"""Processes that wait with a task's libraries imported (serve.autoscale.spare_workers).

Ray gives an actor a worker process of the same job, environment and kind of resources that has done its tasks and
idles, before it starts a new one. So a task that imports what a replica will need, submitted by the controller, whose
replicas they will be, leaves just such a process behind. Ray ends idle workers only beyond as many as a node has cores.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

EVERY_S = 5.0
# What the handlers of a module import when they load a model, and takes seconds.
_TRANSFORMERS = ("torch", "transformers", "transformers.models.auto.modeling_auto", "transformers.modeling_utils")
LIBRARIES: dict[str, tuple[str, ...]] = {
    "serve.tasks.text": (*_TRANSFORMERS, "transformers.models.auto.tokenization_auto"),
    "serve.tasks.vision": (*_TRANSFORMERS, "transformers.models.auto.image_processing_auto"),
    "serve.tasks.tabular": ("pandas", "sklearn.ensemble", "skops.io"),
}


class Spares:
    """Belongs to one thread of the controller."""

    def __init__(self) -> None:
        self._looked = -EVERY_S
        self._under_way: dict[str, list[Any]] = {}

    def keep(self, applications: Iterable[Mapping[str, Any]]) -> None:
        """See to the spares of applications with these keys. A task that finds the libraries there costs nothing, so
        whether there are still spares is found out by sending them again."""
        if time.monotonic() - self._looked < EVERY_S:
            return
        self._looked = time.monotonic()
        import ray

        for module, number in _counts(applications).items():
            waiting = self._under_way.get(module, [])
            if waiting and len(ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]) < len(waiting):
                continue
            preload = ray.remote(prepare).options(num_cpus=0, max_retries=0, scheduling_strategy="SPREAD")
            self._under_way[module] = [preload.remote(LIBRARIES[module], number) for _ in range(number)]


def _counts(applications: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many spares of each handler's module: as many as one application wants, for they are all alike."""
    from cluster import tasks

    found: dict[str, int] = {}
    for keys in applications:
        module = tasks.get(keys["task"]).server.partition(":")[0]
        if keys["spare_workers"] and module in LIBRARIES:
            found[module] = max(found.get(module, 0), keys["spare_workers"])
    return found


def prepare(modules: tuple[str, ...], number: int) -> int:
    """The task: import these. Returns the process's id. One of several stays a moment, so that they do not all come to
    the same process."""
    for module in modules:
        importlib.import_module(module)
    if number > 1:
        time.sleep(0.5)
    return os.getpid()
