"""Metrics of a classifier, over scikit-learn: predictions and references are indices of classes, int32.

A class that stands neither in predictions nor in references counts for nothing, as in scikit-learn; a share of nothing
(precision of a class never predicted) is 0.
"""

# A metric names its own options, where evaluate's base class takes any.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import evaluate
from datasets import Features, Value
from sklearn import metrics

_NOTHING: Any = 0  # what a share of nothing is
_CITATION = "Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011"


class _OverClasses(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation=_CITATION,
            inputs_description="predictions, references: indices of classes",
            features=Features({"predictions": Value("int32"), "references": Value("int32")}),
        )

    def _download_and_prepare(self, dl_manager: Any) -> None:
        pass


class Accuracy(_OverClasses):
    """Share of right predictions, 0..1."""

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(metrics.accuracy_score(references, predictions))}


class Precision(_OverClasses):
    """Of what is said to be a class, the share that is: 0..1, the plain mean over classes (macro)."""

    def _compute(self, *, predictions: Any, references: Any, average: Any = "macro") -> dict[str, float]:
        value = metrics.precision_score(references, predictions, average=average, zero_division=_NOTHING)
        return {"precision": float(value)}


class Recall(_OverClasses):
    """Of what is a class, the share said to be: 0..1, the plain mean over classes (macro)."""

    def _compute(self, *, predictions: Any, references: Any, average: Any = "macro") -> dict[str, float]:
        return {"recall": float(metrics.recall_score(references, predictions, average=average, zero_division=_NOTHING))}


class F1(_OverClasses):
    """Harmonic mean of precision and recall: 0..1, the plain mean over classes (macro)."""

    def _compute(self, *, predictions: Any, references: Any, average: Any = "macro") -> dict[str, float]:
        return {"f1": float(metrics.f1_score(references, predictions, average=average, zero_division=_NOTHING))}


class PerClass(_OverClasses):
    """Precision, recall, F1 and support (rows that are it) of each of `num_classes` classes, in order."""

    def _compute(self, *, predictions: Any, references: Any, num_classes: int) -> dict[str, list[float]]:
        found: Any = metrics.precision_recall_fscore_support(
            references, predictions, labels=range(num_classes), zero_division=_NOTHING
        )
        columns = dict(zip(("precision", "recall", "f1", "support"), (column.tolist() for column in found)))
        return {**columns, "support": [int(rows) for rows in columns["support"]]}


class Confusion(_OverClasses):
    """How many rows of class i (outer list) were said to be class j (inner list), for `num_classes` classes."""

    def _compute(self, *, predictions: Any, references: Any, num_classes: int) -> dict[str, list[list[int]]]:
        return {"confusion": metrics.confusion_matrix(references, predictions, labels=range(num_classes)).tolist()}
