"""Keeping one library from another, that the latter would import for no use of ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def missing(name: str) -> Iterator[None]:
    """While the block runs, it is as if the module `name` were not installed: whoever can do without it does. Nothing
    is kept from anybody where it has been imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = cast(Any, None)  # Python's own word for: no such module
    try:
        yield
    finally:
        del sys.modules[name]
