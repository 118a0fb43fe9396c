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
from cluster.spec.metrics import LOWER, reached
from train.code import digest
from train.metrics import check, names

if TYPE_CHECKING:
    from cluster.registry import Registry
    from train.data import Prepared

__all__ = ["Evaluation", "check", "code", "evaluate"]
FOLDER = "evaluation"  # of the run
_CODE = ("score.py", "judge.py", "likelihood.py", "objective.py", "confusion.py", "metrics/*.py", "tasks/*.py")
# By whether less is better, and whether the gate is passed.
_VERDICTS = {False: {True: "reaches", False: "is below"}, True: {True: "is at most", False: "is above"}}


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    `metrics`: those of the file, and `loss` (mean cross-entropy in nats) where the model gives logits; of a language
    model that began as another, that one's `base_perplexity` too.
    `per_class`: a dict a label with label, precision, recall, f1, support. `confusion`: rows of class i said to be j.
    `majority`: the share of the commonest class, which a model that always says it would reach. All three are empty or
    0 where there are no classes. `gate`: metric to (value, least or, where less is better, most, reached). `files`:
    artifacts of the run.
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
        """Whether every gated metric is good enough; without a gate, True."""
        return all(passed for _, _, passed in self.gate.values())

    def gate_text(self) -> str:
        """The gate in words: metric, value, bound."""
        if not self.gate:
            return "no gate"
        return "; ".join(
            f"{name} {value:.6g} {_VERDICTS[name in LOWER][passed]} {bound:g}"
            for name, (value, bound, passed) in self.gate.items()
        )

    def table(self) -> str:
        """A table for people: a line a class, then the metrics against the majority or the base, and the gate."""
        told = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        gate = [f"gate: {self.gate_text()}"] if self.gate else []
        if not self.per_class:
            return "\n".join([f"{self.split}, {self.rows} rows: {told}", *gate])
        width = min(40, max(5, *(len(_shown(row["label"])) for row in self.per_class)))
        lines = [f"{'class':<{width}}  precision  recall      f1  support"]
        lines += [
            f"{_shown(row['label']):<{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}"
            f"  {row['support']:7d}"
            for row in self.per_class
        ]
        commonest = max(self.per_class, key=lambda row: row["support"])["label"]
        lines += [
            f"{self.split}, {self.rows} rows: {told}",
            f"always saying {_shown(commonest)!r} would reach an accuracy of {self.majority:.4f}",
        ]
        return "\n".join(lines + gate)

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
                name: {"value": _finite(value), "most" if name in LOWER else "least": bound, "reached": passed}
                for name, (value, bound, passed) in self.gate.items()
            },
            "passed": self.passed,
            "seconds": self.seconds,
        }


def evaluate(
    spec: Spec, prepared: Prepared, folder: Path, *, registry: Registry, run_id: str, progress: Progress = silent
) -> Evaluation:
    """Judge the model in `folder` on the test rows, or the validation rows where there is no test.

    Logs the metrics to the run as test/NAME, and evaluation.json, table.txt and, where there are classes, confusion.png
    under "evaluation".
    A gate that is not met raises nothing: see `passed` and `gate_text()`.
    Raises InputError for a metric nobody knows and a model that does not fit, RunFailed, ClusterGone.
    """
    from train import confusion
    from train.judge import Question, judge

    started = time.monotonic()
    chosen = names(spec)
    row = tasks.trainable(spec)
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
            train=spec.train,
            base=_base(spec, registry) if "label" not in row.columns else None,
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
        majority=max(found.per_class["support"]) / found.rows if prepared.labels else 0.0,
        gate={
            name: (found.metrics[name], bound, reached(name, found.metrics[name], bound))
            for name, bound in spec.evaluate.gate.items()
        },
        seconds=time.monotonic() - started,
        files=tuple(
            f"{FOLDER}/{name}"
            for name in ("evaluation.json", "table.txt", *(("confusion.png",) if prepared.labels else ()))
        ),
    )

    # Files, and the run.
    with tempfile.TemporaryDirectory(prefix="shoal-") as place:
        about = {"name": spec.name, "task": spec.task, "data": prepared.digest, **result.content()}
        Path(place, "evaluation.json").write_text(json.dumps(about, indent=1, allow_nan=False), encoding="utf-8")
        Path(place, "table.txt").write_text(result.table() + "\n", encoding="utf-8")
        title = f"{spec.name}: {result.rows} {split} rows"
        if prepared.labels:
            confusion.draw(result.confusion, prepared.labels, Path(place, "confusion.png"), title=title)
        registry.log_artifacts(run_id, Path(place), FOLDER)
    registry.log(run_id, {f"test/{name}": value for name, value in result.metrics.items()})
    return result


def code() -> str:
    """SHA-256 (hex) of the sources that decide how an evaluation comes out."""
    return digest(Path(__file__).parent, _CODE)


def _base(spec: Spec, registry: Registry) -> Path | None:
    """The folder of the model that training began with, on which an adapter stands; None where there was none."""
    from cluster.registry import resolve

    return None if spec.train.from_scratch else resolve(spec.model_ref(), registry)


def _shown(label: str) -> str:
    """A label on one line of a table."""
    line = " ".join(label.split())
    return line if len(line) <= 40 else f"{line[:39]}…"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
