"""How good a trained model is: metrics, a table, a confusion matrix, and whether it passes its gate."""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import tasks
from cluster.errors import InputError
from cluster.progress import Progress, silent
from cluster.spec import Spec
from train.code import digest
from train.metrics import check, names

if TYPE_CHECKING:
    from cluster.registry import Registry
    from train.data import Prepared

__all__ = ["Evaluation", "check", "code", "evaluate"]
FOLDER = "evaluation"  # of the run
_CODE = ("score.py", "judge.py", "objective.py", "confusion.py", "metrics/*.py", "tasks/*.py")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    `metrics`: those of the file, 0..1, and `loss` (mean cross-entropy in nats) where the model gives logits.
    `per_class`: a dict a label with label, precision, recall, f1, support. `confusion`: rows of class i said to be j.
    `majority`: the share of the commonest class, which a model that always says it would reach. `gate`: metric to
    (value, least, reached). `files`: artifacts of the run.
    """

    split: str
    rows: int
    labels: list[str]
    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    confusion: list[list[int]]
    majority: float
    gate: dict[str, tuple[float, float, bool]]
    seconds: float
    files: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gated metric reaches its least; without a gate, True."""
        return all(reached for _, _, reached in self.gate.values())

    def gate_text(self) -> str:
        """The gate in words: metric, value, least."""
        if not self.gate:
            return "no gate"
        return "; ".join(
            f"{name} {value:.6g} {'reaches' if reached else 'is below'} {least:g}"
            for name, (value, least, reached) in self.gate.items()
        )

    def table(self) -> str:
        """A table for people: a line a class, then the metrics against the majority, and the gate."""
        width = min(40, max(5, *(len(_shown(row["label"])) for row in self.per_class)))
        lines = [f"{'class':<{width}}  precision  recall      f1  support"]
        lines += [
            f"{_shown(row['label']):<{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}"
            f"  {row['support']:7d}"
            for row in self.per_class
        ]
        told = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        commonest = max(self.per_class, key=lambda row: row["support"])["label"]
        lines += [
            f"{self.split}, {self.rows} rows: {told}",
            f"always saying {_shown(commonest)!r} would reach an accuracy of {self.majority:.4f}",
        ]
        return "\n".join(lines + ([f"gate: {self.gate_text()}"] if self.gate else []))

    def content(self) -> dict[str, Any]:
        """Everything as plain values for JSON; a number that is none (NaN) is null."""
        return {
            "split": self.split,
            "rows": self.rows,
            "labels": self.labels,
            "metrics": {name: _finite(value) for name, value in self.metrics.items()},
            "majority": self.majority,
            "per_class": self.per_class,
            "confusion": self.confusion,
            "gate": {
                name: {"value": _finite(value), "least": least, "reached": reached}
                for name, (value, least, reached) in self.gate.items()
            },
            "passed": self.passed,
            "seconds": self.seconds,
        }


def evaluate(
    spec: Spec, prepared: Prepared, folder: Path, *, registry: Registry, run_id: str, progress: Progress = silent
) -> Evaluation:
    """Judge the model in `folder` on the test rows, or the validation rows where there is no test.

    Logs the metrics to the run as test/NAME, and evaluation.json, table.txt and confusion.png under "evaluation".
    A gate that is not met raises nothing: see `passed` and `gate_text()`.
    Raises InputError for a metric nobody knows and a model that does not fit, RunFailed, ClusterGone.
    """
    from train import confusion
    from train.judge import Question, judge

    started = time.monotonic()
    chosen = names(spec)
    tasks.trainable(spec)
    split = prepared.judged
    if not prepared.rows.get(split):
        raise InputError(f"data.{split}: no rows to judge by; give data.test or data.validation")

    # The model's answers to every row.
    found = judge(
        Question(
            task=spec.task,
            folder=folder,
            file=prepared.file(split),
            labels=prepared.labels,
            metrics=chosen,
            batch_size=spec.evaluate.batch_size,
        ),
        rows=prepared.rows[split],
        progress=progress,
    )

    # What they are worth.
    result = Evaluation(
        split=split,
        rows=found.rows,
        labels=prepared.labels,
        metrics=found.metrics,
        per_class=[
            {"label": label, **{name: column[i] for name, column in found.per_class.items()}}
            for i, label in enumerate(prepared.labels)
        ],
        confusion=found.confusion,
        majority=max(found.per_class["support"]) / found.rows,
        gate={
            # Not a number reaches nothing: it is greater or equal to no threshold.
            name: (found.metrics[name], least, found.metrics[name] >= least)
            for name, least in spec.evaluate.gate.items()
        },
        seconds=time.monotonic() - started,
        files=tuple(f"{FOLDER}/{name}" for name in ("evaluation.json", "table.txt", "confusion.png")),
    )

    # Files, and the run.
    with tempfile.TemporaryDirectory(prefix="shoal-") as place:
        about = {"name": spec.name, "task": spec.task, "data": prepared.digest, **result.content()}
        Path(place, "evaluation.json").write_text(json.dumps(about, indent=1, allow_nan=False), encoding="utf-8")
        Path(place, "table.txt").write_text(result.table() + "\n", encoding="utf-8")
        title = f"{spec.name}: {result.rows} {split} rows"
        confusion.draw(result.confusion, prepared.labels, Path(place, "confusion.png"), title=title)
        registry.log_artifacts(run_id, Path(place), FOLDER)
    registry.log(run_id, {f"test/{name}": value for name, value in result.metrics.items()})
    return result


def code() -> str:
    """SHA-256 (hex) of the sources that decide how an evaluation comes out."""
    return digest(Path(__file__).parent, _CODE)


def _shown(label: str) -> str:
    """A label on one line of a table."""
    line = " ".join(label.split())
    return line if len(line) <= 40 else f"{line[:39]}…"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
