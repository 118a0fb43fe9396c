"""Whether a cluster is one that this Shoal can work on: asked before anything is sent."""

from __future__ import annotations

import platform
from importlib import metadata

from cluster.errors import InputError
from cluster.submit.client import Jobs


def check(jobs: Jobs) -> None:
    """Raises InputError, naming both versions, where Ray's or Python's minor version differs from ours.

    The job's code is the cluster's own Shoal, and its models are read back here: so both sides have to agree.
    """
    theirs, ours = jobs.versions(), {"ray": metadata.version("ray"), "python": platform.python_version()}
    apart = [kind for kind in ours if _minor(theirs[kind]) != _minor(ours[kind])]
    if not apart:
        return
    said = " and ".join(f"{_NAMES[kind]} {theirs[kind]} (here {ours[kind]})" for kind in apart)
    wanted = " and ".join(f"{_NAMES[kind]} {_minor(theirs[kind])}" for kind in apart)
    raise InputError(
        f"{jobs.target.name}: the cluster runs {said}; install {wanted} here, or start the cluster from an image with "
        f"{' and '.join(f'{_NAMES[kind]} {_minor(ours[kind])}' for kind in apart)}"
    )


_NAMES = {"ray": "Ray", "python": "Python"}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
