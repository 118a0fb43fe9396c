"""How long work tells of its progress, to whoever called it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with a stage, how much of it is done, the whole (same unit) and a short note such as "loss 0.31"."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None: ...


def silent(stage: str, done: float, total: float, note: str = "") -> None:
    """Tell nobody."""
