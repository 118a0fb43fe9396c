"""A gateway's place behind its node's HAProxy, and what HAProxy is told of the models."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from typing import IO, Any

from cluster.errors import RunFailed
from serve.haproxy import SLOTS


def take_place(folder: Any) -> tuple[str, IO[str]]:
    """A socket's path that no other gateway of this node has, and the lock that keeps it. Raises RunFailed."""
    for slot in range(SLOTS):
        lock = open(folder / f"g{slot}.lock", "w")  # noqa: SIM115 - open as long as the place is taken
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        path = folder / f"g{slot}"
        path.unlink(missing_ok=True)  # of one that was killed
        return str(path), lock
    raise RunFailed(f"{SLOTS} gateways run on this node, which is the most; lower http.gateways in cluster.yaml")


def retried(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How the paths begin of requests that may be run again where a gateway died with them: all, unless there are
    models whose files say that theirs may not be. Routes that name their model in the body are not among them then."""
    if all(model.get("idempotent", True) for model in models.values()):
        return ["/"]
    return sorted(f"/models/{name}/" for name, model in models.items() if model.get("idempotent", True))
