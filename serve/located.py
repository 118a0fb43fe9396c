"""Where a replica finds what it is to serve."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import RunFailed


def located(folder: str) -> Path:
    """The folder of a model's files. On Kubernetes it is a reference (models:/name@alias, a Hub id), which the replica
    itself fetches, because what was deployed from is another machine.

    Raises InputError where a reference cannot be had, RunFailed where a folder is not on this node.
    """
    path = Path(folder)
    if path.is_dir():
        return path
    if path.is_absolute():
        raise RunFailed(
            f"{folder} is not on this replica's node; set SHOAL_HOME to a folder of storage that all nodes of the "
            "cluster share"
        )
    from cluster.registry import resolve

    return resolve(folder)
