"""Metrics by name. The classes are `evaluate.Metric`s that fetch nothing; they are imported when one is made."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cluster import tasks
from cluster.errors import InputError
from cluster.imports import missing
from cluster.spec import Spec

if TYPE_CHECKING:
    from pathlib import Path

METRICS = {
    "accuracy": "train.metrics.classification:Accuracy",
    "precision": "train.metrics.classification:Precision",
    "recall": "train.metrics.classification:Recall",
    "f1": "train.metrics.classification:F1",
    "per_class": "train.metrics.classification:PerClass",
    "confusion": "train.metrics.classification:Confusion",
    "perplexity": "train.metrics.generation:Perplexity",
}


def names(spec: Spec) -> list[str]:
    """The metrics of a file: those it lists, or the task's own, in order and once.

    Raises InputError, naming the nearest, for one the task is not judged by, and for a gate on one not computed.
    """
    task = tasks.task_of(spec)
    known = [name for name in task.metrics if name in METRICS]
    if not known and (spec.evaluate.metrics or spec.evaluate.gate):
        raise InputError(f"evaluate: {task.name} has no metrics yet; leave out metrics and gate")
    for name in spec.evaluate.metrics:
        if name not in known:
            raise InputError(f"evaluate.metrics: {name!r} is no metric of {task.name}; {_hint(name, known)}")
    chosen = list(dict.fromkeys(spec.evaluate.metrics or known))
    for name in spec.evaluate.gate:
        if name not in known:
            raise InputError(f"evaluate.gate.{name}: {name!r} is no metric of {task.name}; {_hint(name, known)}")
        if name not in chosen:
            raise InputError(f"evaluate.gate.{name}: not computed; add {name} to evaluate.metrics, or leave those out")
    return chosen


def check(spec: Spec) -> None:
    """Refuse metrics and gates that no evaluation could compute, before anything is spent. Raises InputError."""
    names(spec)


def make(name: str, cache: Path) -> Any:
    """A new `evaluate.Metric`; `cache` is a folder that it may write to and leave empty."""
    module, _, cls = METRICS[name].partition(":")
    # `evaluate` imports all of transformers and torch, for pipelines that it could judge, wherever they are installed:
    # ten seconds to score a table. `datasets` looks for transformers, too, and remembers.
    import_module("datasets")
    with missing("transformers"):
        found = import_module(module)
    return getattr(found, cls)(keep_in_memory=True, cache_dir=str(cache))


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"write some of {', '.join(known)}"
