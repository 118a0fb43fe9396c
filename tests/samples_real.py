"""The real packages of `shoal samples`, for tests that want them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import samples
from cluster.errors import RunFailed


def fetch_or_skip(names: list[str], into: Path) -> None:
    """Fetch them into a folder, out of the downloads in samples/ where those are there. Skips the test where this
    machine reaches no index."""
    here = Path(__file__).parent.parent / "samples" / ".downloads"
    if here.is_dir():
        (into / ".downloads").mkdir()
        for file in here.iterdir():
            if file.is_file():
                os.symlink(file, into / ".downloads" / file.name)
    try:
        samples.fetch(names, into=into)
    except RunFailed as error:
        if "could not fetch" in str(error) or "is not installed" in str(error):
            pytest.skip(str(error))
        raise
