"""What a row of the table says, and whether it can be trained or served today.

A row names its code as "module:Class". Whether that is really there is read off the source, without importing it, so
the support matrix cannot lie.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Modality = Literal["text", "vision", "audio", "tabular", "multimodal", "video"]


@dataclass(frozen=True)
class Task:
    """One row. `columns` maps the role of a column to whether it is required; `trainer` and `server` are
    "module:Class" or empty."""

    name: str
    modality: Modality
    request: str
    response: str
    columns: dict[str, bool]
    metrics: tuple[str, ...] = ()
    trainer: str = ""
    server: str = ""

    @property
    def trainable(self) -> bool:
        return _exists(self.trainer)

    @property
    def servable(self) -> bool:
        return _exists(self.server)

    def about(self) -> str:
        """One line: what goes in, what comes out, and what can be done with it today."""
        can = {(True, True): "trained and served", (True, False): "trained", (False, True): "served"}
        today = can.get((self.trainable, self.servable))
        state = f"can be {today}" if today else "not here yet"
        return f"{self.name} ({self.modality}): {self.request} -> {self.response}; {state}"


@cache
def _exists(target: str) -> bool:
    """Whether "package.module:Class" is in this installation, read from its source: nothing is imported."""
    module, _, name = target.partition(":")
    if not name:
        return False
    place = Path(__file__).parents[2].joinpath(*module.split("."))
    file = next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
    if file is None:
        return False
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in body)
