"""A sweep's trials in an Optuna study on disk: what was drawn, what it came to, what is left to do.

Every draw is in the file before its trial starts, and every outcome before the next draw: a sweep killed at any moment
goes on with exactly the trials that have not ended. Ray Tune's own snapshots are periodic and lose the last of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.spec import Spec
from cluster.spec.tune import Value
from tune.space import distributions, own

Status = Literal["running", "finished", "pruned", "failed"]
# Draws of what was drawn before, one after the other, until a space of choices counts as exhausted.
_REPEATS = 40


@dataclass(frozen=True)
class Row:
    """A trial. `value` is the swept metric (None before it has ended, or failed; of a pruned one the last), `marks`
    its values at the validations in between, `seconds` those of its last attempt."""

    number: int
    status: Status
    values: dict[str, Value]
    value: float | None
    marks: dict[int, float]
    run_id: str
    seconds: float
    error: str
    reused: bool


class Study:
    """The trials of one sweep. Written by one process at a time."""

    def __init__(self, file: Path, spec: Spec) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        tune = spec.tune
        file.parent.mkdir(parents=True, exist_ok=True)
        self.maximize = tune.metric == "accuracy"
        self.trials = tune.trials
        self._space = distributions(tune.space)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}")
        direction = "maximize" if self.maximize else "minimize"
        self._study = optuna.create_study(
            storage=self._storage, study_name="sweep", direction=direction, load_if_exists=True
        )
        # The file's own values come first: a sweep never ends below what was there before it.
        if not self._study.get_trials(deepcopy=False) and (first := own(spec)) is not None:
            self._study.enqueue_trial(first)
        # A fresh seed after a restart: the same one would draw the same values over again.
        seed = (spec.train.seed if tune.seed is None else tune.seed) + len(self._study.get_trials(deepcopy=False))
        self._study.sampler = _sampler(tune.search, seed % 2**31, tune.trials)
        # Trials that an earlier process began and did not see the end of.
        self._open = [row.number for row in self.rows() if row.status == "running"]

    @property
    def run_id(self) -> str:
        """The sweep's run in the registry; empty before there is one."""
        return self._study.user_attrs.get("run", "")

    @run_id.setter
    def run_id(self, value: str) -> None:
        self._study.set_user_attr("run", value)

    @property
    def exhausted(self) -> bool:
        """Whether a space of choices held fewer different trials than were asked for."""
        return bool(self._study.user_attrs.get("exhausted"))

    def left(self) -> int:
        """Trials that have not ended, drawn or not."""
        rows = self.rows()
        open_ = sum(row.status == "running" for row in rows)
        return open_ if self.exhausted else open_ + max(0, self.trials - len(rows))

    def next(self) -> Row | None:
        """The next trial to run: one that was broken off, or a new draw; None where there is no more."""
        if self._open:
            return self._row(self._open.pop(0))
        rows = self.rows()
        if len(rows) >= self.trials or self.exhausted:
            return None
        seen = [row.values for row in rows]
        for _ in range(_REPEATS):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial = self._study.ask(fixed_distributions=self._space)
            if trial.params not in seen:
                return self._row(trial.number)
            # The same values give the same model: no second run of it.
            self._set(trial.number, {"repeat": True})
            self._study.tell(trial.number, state=_states()["failed"])
        self._study.set_user_attr("exhausted", True)
        return None

    def mark(self, number: int, mark: int, value: float) -> None:
        """A trial's metric at its validation `mark` (from 1)."""
        if math.isfinite(value):
            self._storage.set_trial_intermediate_value(self._id(number), mark, value)

    def note(self, number: int, about: Mapping[str, Any]) -> None:
        """What to remember of a trial that runs: run, seconds, error, reused."""
        self._set(number, about)

    def end(self, number: int, status: Status, value: float | None = None) -> None:
        """A trial has ended; it is never run again."""
        self._study.tell(number, value if status == "finished" else None, state=_states()[status])

    def rows(self) -> list[Row]:
        """Every trial that was drawn, in that order."""
        waiting, trials = _states()["waiting"], self._study.get_trials(deepcopy=False)
        return [_as_row(trial) for trial in trials if trial.state != waiting and not trial.user_attrs.get("repeat")]

    def finished(self) -> list[Any]:
        """Optuna's own records of the trials that ran to their end, for its measures of importance."""
        return self._study.get_trials(states=(_states()["finished"],))

    def best(self) -> Row | None:
        """The finished trial with the best value; the earlier of equals."""
        done = [row for row in self.rows() if row.status == "finished" and row.value is not None]
        sign = -1 if self.maximize else 1
        return min(done, key=lambda row: (sign * (row.value or 0.0), row.number), default=None)

    def importance(self) -> dict[str, float]:
        """Share of the metric's variance over the space that a key explains, most important first: fANOVA (Hutter et
        al., ICML 2014) over the finished trials."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_param_importances(self._study, evaluator=FanovaImportanceEvaluator(seed=0))

    def _row(self, number: int) -> Row:
        return next(row for row in self.rows() if row.number == number)

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name("sweep")
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _set(self, number: int, about: Mapping[str, Any]) -> None:
        for key, value in about.items():
            self._storage.set_trial_user_attr(self._id(number), key, value)


def _sampler(search: str, seed: int, trials: int) -> Any:
    from optuna.samplers import RandomSampler, TPESampler

    if search == "random":
        return RandomSampler(seed=seed)
    # Optuna draws its first 10 at random; of a sweep of 8 that would be all.
    return TPESampler(seed=seed, n_startup_trials=min(10, max(3, trials // 4)))


def _states() -> dict[str, Any]:
    from optuna.trial import TrialState

    return {
        "finished": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "running": TrialState.RUNNING,
        "waiting": TrialState.WAITING,
    }


def _as_row(trial: Any) -> Row:
    status: Any = next(name for name, state in _states().items() if state == trial.state)
    marks, about = dict(sorted(trial.intermediate_values.items())), trial.user_attrs
    last = list(marks.values())[-1] if marks else None
    return Row(
        number=trial.number,
        status=status,
        values=dict(trial.params),
        value=trial.value if status == "finished" else last,
        marks=marks,
        run_id=about.get("run", ""),
        seconds=about.get("seconds", 0.0),
        error=about.get("error", ""),
        reused=about.get("reused", False),
    )
