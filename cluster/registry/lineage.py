"""Where a run comes from: code, environment and user. Nothing that names the machine."""

from __future__ import annotations

import getpass
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).parent.parent.parent
_PACKAGES = ("cluster", "train", "tune", "serve", "k8s")
_NAMED = ("torch", "ray", "transformers", "datasets", "scikit-learn", "mlflow")


@cache
def code() -> dict[str, str]:
    """Tags of Shoal's own code: shoal.code is the git commit of its checkout, or its version where it is installed;
    shoal.code_dirty says whether the checkout had changes that were not committed."""
    commit = _git("rev-parse", "HEAD") if _git("rev-parse", "--show-toplevel") == str(_ROOT) else None
    if commit is None:
        return {"shoal.code": f"shoal {version('shoal') or 'unknown'}"}
    dirty = _git("status", "--porcelain", "--untracked-files=no", "--", *_PACKAGES) != ""
    return {"shoal.code": commit, "shoal.code_dirty": str(dirty).lower(), "mlflow.source.git.commit": commit}


def environment() -> dict[str, str]:
    """Tags of what a run depends on: shoal.python, shoal.torch, ... of what is installed."""
    tags = {"shoal.python": platform.python_version(), "shoal.platform": f"{platform.system()} {platform.machine()}"}
    return tags | {f"shoal.{name}": found for name in _NAMED if (found := version(name))}


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    pairs = ((item.metadata["Name"], item.version) for item in metadata.distributions())
    return dict(sorted((name, found) for name, found in pairs if name))


def user() -> str:
    """Who runs this; "unknown" for a user id without a name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says; None where there is no git, no checkout, or one that git does not trust."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
