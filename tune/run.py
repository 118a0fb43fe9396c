"""A sweep as a verb: found where it has been done, gone on with where it was broken off, made otherwise."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import settings, tasks
from cluster.errors import InputError, NotFound, RunFailed, ShoalError
from cluster.progress import Progress, silent
from cluster.spec import Spec
from train import run as training
from tune import tuner
from tune.space import told, tried
from tune.study import Row, Study

if TYPE_CHECKING:
    from cluster.registry import Registry
    from train.data import Prepared
    from train.run import Trained


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended: its run in the registry, its folder, its trials; the best one with the file that gives
    it (`spec`) and its run (`trained`); whether there was nothing left to do; the seconds this call took."""

    run_id: str
    folder: Path
    study: Study
    rows: list[Row]
    best: Row
    spec: Spec
    trained: Trained
    reused: bool
    seconds: float


def key(spec: Spec, prepared: Prepared) -> str:
    """SHA-256 (hex) of all that decides a sweep: what is swept, how, and everything that decides a training run."""
    section = spec.tune.model_dump(exclude={"max_concurrent"})
    whole = [training.key(spec, prepared), section]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def ended(spec: Spec, prepared: Prepared, registry: Registry) -> tuple[Spec, Trained] | None:
    """The best trial of this very sweep, its file and its run, where nothing is left of it to do; else None."""
    file = _folder(spec, key(spec, prepared)) / "study.db"
    if not file.exists():
        return None
    study = Study(file, spec)
    best = study.best()
    if study.left() or best is None:
        return None
    chosen = tried(spec, best.values)
    trained = training.finished(chosen, prepared, registry)
    return (chosen, trained) if trained is not None else None


def sweep(
    spec: Spec,
    prepared: Prepared,
    *,
    registry: Registry,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> Swept:
    """Run the trials of a file's `tune` section on the attached Ray cluster.

    A sweep of the same key goes on where it was broken off: trials that ended are not run again, others go on from
    their last checkpoints. Failed trials are counted and told of. Raises InputError where the file is wrong, RunFailed
    where every trial failed, ClusterGone where Ray goes away; the sweep's run is ended as FAILED or KILLED then.
    """
    started = time.monotonic()
    tasks.trainable(spec)
    if not spec.tune.space:
        raise InputError(
            "tune.space: missing; write what to try, e.g. tune: {trials: 8, space: {train.learning_rate: {loguniform: "
            "[1e-6, 1e-3]}}}"
        )

    # The sweep: its folder with its study, and its run in the registry.
    digest = key(spec, prepared)
    folder = _folder(spec, digest)
    study = Study(folder / "study.db", spec)
    study.run_id = run_id = _run_of(study, registry) or _begin(spec, prepared, digest, registry)
    left = study.left()

    # The trials.
    if left:
        done = study.trials - left
        say(f"tune: {left} of {study.trials} trials to run{', the others are done' if done else ''}")
        try:
            tuner.run(spec, prepared, study, folder, registry, progress, say)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            if isinstance(error, ShoalError):
                registry.set_tags(run_id, {"shoal.error": error.message})
            registry.end_run(run_id, "KILLED" if stopped else "FAILED")
            if stopped:
                say(f"tune: {study.left()} of {study.trials} trials are left; the same command goes on with them")
            raise
    if study.exhausted and left:
        say(f"tune: the space holds {len(study.rows())} different trials, fewer than tune.trials: {study.trials}")

    # What came of them.
    rows, best = study.rows(), study.best()
    _tidy(rows, spec, prepared, registry)
    if best is None:
        first = next((row.error for row in rows if row.error), "no trial ran to its end")
        message = f"tune: all {len(rows)} trials failed; the first: {first}"
        registry.set_tags(run_id, {"shoal.error": message})
        registry.end_run(run_id, "FAILED")
        raise RunFailed(message)
    chosen = tried(spec, best.values)
    # Found by its key; made again where its files were deleted.
    trained = training.train(chosen, prepared, registry=registry, progress=progress)
    about = {"shoal.sweep": run_id, "shoal.trial": str(best.number), "shoal.tuned": json.dumps(best.values)}
    registry.set_tags(trained.run_id, about)
    seconds = time.monotonic() - started
    return Swept(run_id, folder, study, rows, best, chosen, trained, reused=not left, seconds=seconds)


def finish(swept: Swept, registry: Registry, report: Path) -> None:
    """Note on the sweep's run what came of it, with the report's folder, and end it."""
    best, rows = swept.best, swept.rows
    counts = {f"trials/{name}": sum(row.status == name for row in rows) for name in ("finished", "pruned", "failed")}
    metrics = {key: value for key, value in swept.trained.metrics.items() if key.startswith("validation/")}
    registry.log(swept.run_id, {**counts, **metrics})
    tags = {"shoal.best_trial": str(best.number), "shoal.best_run": swept.trained.run_id}
    registry.set_tags(swept.run_id, {**tags, "shoal.best_values": told(best.values)})
    registry.log_artifacts(swept.run_id, report, "report")
    registry.end_run(swept.run_id)


def _tidy(rows: list[Row], spec: Spec, prepared: Prepared, registry: Registry) -> None:
    """The checkpoints of trials that will not go on."""
    for row in rows:
        if row.status in ("pruned", "failed"):
            with contextlib.suppress(ValueError):  # values that were never a run
                shutil.rmtree(training.place(spec, training.key(tried(spec, row.values), prepared)), ignore_errors=True)


def _folder(spec: Spec, digest: str) -> Path:
    return settings.home() / "sweeps" / f"{spec.name}-{digest[:12]}"


def _run_of(study: Study, registry: Registry) -> str:
    """The sweep's run, where it is still in the registry."""
    try:
        return registry.run(study.run_id).id if study.run_id else ""
    except NotFound:
        return ""


def _begin(spec: Spec, prepared: Prepared, digest: str, registry: Registry) -> str:
    params: dict[str, Any] = {
        "task": spec.task,
        "model": spec.model,
        "data": spec.data.model_dump(),
        "train": spec.train.model_dump(),
        "tune": spec.tune.model_dump(exclude={"space"}),
        "space": {key: json.dumps(tried) for key, tried in spec.tune.space.items()},
    }
    tags = {
        "shoal.sweep_key": digest,
        "shoal.data_digest": prepared.digest,
        "shoal.task": spec.task,
        "shoal.base_model": spec.model,
    }
    run_id = registry.start_run(spec.name, kind="tune", params=params, tags=tags)
    registry.log_data(run_id, prepared.report["sources"], prepared.rows)
    return run_id
