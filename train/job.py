"""What a training worker is told, and what it asks of whoever started it. Imports no torch: the driver has it, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.spec import Spec


@dataclass(frozen=True)
class Job:
    """What a worker is told: the model's file, the prepared data (`folder`, `labels`), the folder of the base model,
    and the folder of the run, which all workers share."""

    spec: Spec
    data: Path
    labels: list[str]
    model: Path
    folder: Path


class Session(Protocol):
    """Who this worker is among the others, and where its checkpoints go."""

    rank: int
    workers: int
    local_workers: int
    device: str

    def report(self, metrics: dict[str, float], folder: Path | None) -> None:
        """All workers call it together; rank 0 with the folder of a checkpoint."""
        ...

    def checkpoints(self) -> list[tuple[Path, dict[str, float]]]:
        """The checkpoints that are kept, and what was reported with them."""
        ...
