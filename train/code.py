"""What code made a result: a change of it makes the result anew."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest(folder: Path, patterns: Iterable[str]) -> str:
    """SHA-256 (hex) over the names and bytes of the files below `folder` that fit the glob patterns."""
    whole = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()
