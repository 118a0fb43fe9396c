"""Ray Tune's two questions, answered: what to try next (from the study), and which trial to end early (ASHA).

Ray's own OptunaSearch keeps its trials in memory and can hand out none of them a second time; so the study is asked
directly.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.progress import Progress
from cluster.registry import Registry
from cluster.spec import Spec
from tune.space import short
from tune.study import Row, Study

# A third of the trials go on at each rung (the paper's eta is 4; with tens of trials 3 wastes fewer).
REDUCTION = 3
_TELL_SECONDS = 2.0


class _Here:
    """Ray Tune pickles what it is given, for a restore that nobody asks it for; terminals and locks stay here."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Draw(_Here, Searcher):
    """Hands the study's trials to Ray, and what comes of them back to the study."""

    def __init__(self, study: Study, *, metric: str, registry: Registry, say: Callable[[str], None]) -> None:
        super().__init__()
        self._study, self._key, self._registry, self._say = study, metric, registry, say
        self._numbers: dict[str, int] = {}
        self._last: dict[str, dict[str, Any]] = {}

    def suggest(self, trial_id: str) -> Any:
        row = self._study.next()
        if row is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = row.number
        # As text: Ray would look into plain values for searches of its own.
        marks, values = json.dumps(row.marks), json.dumps(row.values)
        return {"number": row.number, "values": values, "marks": marks, "run": row.run_id}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        number = self._numbers[trial_id]
        if result["run_id"] and not self._last.get(trial_id, {}).get("run_id"):
            self._study.note(number, {"run": result["run_id"]})
        self._last[trial_id] = {key: result[key] for key in ("run_id", "step", "total")}
        if "mark" in result:
            self._study.mark(number, result["mark"], result[self._key])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, result = self._numbers[trial_id], result or {}
        self._last.pop(trial_id, None)
        ended = "failed" if error else result.get("ended", "pruned")
        about = {"run": result.get("run_id", ""), "seconds": result.get("seconds", 0.0)}
        value = result.get(self._key)
        if ended == "failed":
            about["error"] = result.get("error", "its process died; `shoal logs` has more")
        elif ended == "finished" and (value is None or not math.isfinite(value)):
            ended, about["error"] = "failed", f"no {self._key} was reported; tune.metric: loss or accuracy"
        elif ended == "pruned":
            self._study.mark(number, result["mark"], result[self._key])
            self._registry.set_tags(about["run"], {"shoal.pruned": f"at validation {result['mark']}"})
        if result.get("reused"):
            about["reused"] = True
        self._study.note(number, {key: what for key, what in about.items() if what})
        self._study.end(number, ended, value)
        del self._numbers[trial_id]
        self._say(_line(next(row for row in self._study.rows() if row.number == number)))

    def share(self) -> float:
        """How much of the running trials is done, in trials."""
        return sum(last["step"] / last["total"] for last in self._last.values() if last["total"])

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(b"")  # the study is on disk already

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its study")


class Told(_Here, Callback):
    """Progress: how many trials have ended, are running, were ended early, and the best so far."""

    def __init__(self, study: Study, draw: Draw, progress: Progress) -> None:
        self._study, self._draw, self._progress = study, draw, progress
        self._at = 0.0

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._at > _TELL_SECONDS:
            self._at = time.monotonic()
            tell(self._study, self._progress, self._draw.share())


def tell(study: Study, progress: Progress, share: float = 0.0) -> None:
    """The state of the sweep, as progress."""
    rows = study.rows()
    counts = {name: sum(row.status == name for row in rows) for name in ("finished", "running", "pruned", "failed")}
    words = {"finished": "finished", "running": "running", "pruned": "ended early", "failed": "failed"}
    said = [f"{count} {words[name]}" for name, count in counts.items() if count]
    if (best := study.best()) is not None:
        said.append(f"best {best.value:.4f} (trial {best.number})")
    total = len(rows) if study.exhausted else study.trials
    progress("tune", len(rows) - counts["running"] + share, total, ", ".join(said))


def scheduler(spec: Spec, metric: str) -> TrialScheduler:
    """ASHA over the validations of a trial, or nothing where a trial has only one: then there is nothing to save."""
    marks = validations(spec)
    if spec.tune.scheduler == "none" or marks < 2:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="mark",
        metric=metric,
        mode="max" if spec.tune.metric == "accuracy" else "min",
        max_t=marks,
        # Nobody is judged by the warm-up.
        grace_period=math.ceil(marks / 6),
        reduction_factor=REDUCTION,
        # The end of a trial is told by the trial: its best checkpoint has yet to become the model.
        stop_last_trials=False,
    )


def validations(spec: Spec) -> int:
    """Validations of the longest trial. An estimator has one."""
    if spec.model_ref().kind == "estimator":
        return 1
    epochs = spec.train.epochs
    for kind, values in spec.tune.space.get("train.epochs", {}).items():
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        epochs = max(numbers) if kind == "choice" else numbers[-1]
    return max(1, math.ceil(epochs * spec.train.checkpoints_per_epoch - 1e-9))


def _line(row: Row) -> str:
    words = {
        "finished": f"{row.value:.4f}" if row.value is not None else "",
        "pruned": f"ended early at {row.value:.4f}" if row.value is not None else "ended early",
        "failed": f"failed: {row.error}",
        "running": "",
    }
    took = " (trained before)" if row.reused else f" in {row.seconds:.0f} s"
    return f"trial {row.number}: {short(row.values)}: {words[row.status]}{took}"
