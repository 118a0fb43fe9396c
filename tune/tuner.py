"""Ray Tune's part of a sweep: its trials, as many at a time as fit, until none is left or someone ends it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import embedded, settings
from cluster.errors import InputError, ShoalError
from cluster.progress import Progress
from cluster.spec import Spec
from tune.study import Study

if TYPE_CHECKING:
    from cluster.registry import Registry
    from train.data import Prepared

# Seconds that interrupted trials get to end their workers.
_END = 25.0
# What Ray Tune reads from the environment: Ctrl-C comes to us, nothing is written besides, results may lack the metric.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run(
    spec: Spec,
    prepared: Prepared,
    study: Study,
    folder: Path,
    registry: Registry,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Run what is left of a sweep on the attached Ray cluster; `folder` is the sweep's. Returns when no trial runs any
    more, however it ends. Raises InputError where not even one trial fits, and what Ray Tune does."""
    import ray
    from ray import tune

    from cluster import connect
    from tune import search
    from tune.trial import LIVE, STOP, Plan, Trial

    resources = ray.cluster_resources()
    slots, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    cores = embedded.cores() if connect.running() is not None else int(slots)
    concurrent = at_once(spec, slots=slots, gpus=gpus, cores=cores)
    metric = f"validation/{spec.tune.metric}"
    if spec.tune.scheduler == "asha" and search.validations(spec) < 2:
        say("tune.scheduler: asha has one validation a trial and ends none early; raise train.checkpoints_per_epoch")

    # What a sweep that was killed left behind means nothing to this one.
    for name in (LIVE, "ray"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / STOP).unlink(missing_ok=True)
    (folder / LIVE).mkdir()

    plan = Plan(spec, prepared, registry.uri, settings.home(), folder, study.run_id)
    draw = search.Draw(study, metric=metric, registry=registry, say=say)
    sweep = tune.Tuner(
        # No core for a trial's driver: its workers ask for theirs, and drivers that held some could starve them all.
        tune.with_resources(tune.with_parameters(Trial, plan=plan), {"CPU": 0, "node:__internal_head__": 0.001}),
        tune_config=tune.TuneConfig(
            search_alg=draw,
            scheduler=search.scheduler(spec, metric),
            num_samples=study.left(),
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(folder),
            # A driver that dies with its node is replaced; its trial goes on from the last checkpoint.
            failure_config=tune.FailureConfig(max_failures=2),
            # A trial's checkpoints are those of its training.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[search.Told(study, draw, progress)],
            verbose=0,
        ),
    )
    progress("tune", 0, 0, f"{concurrent} at a time; starting the first")
    try:
        with _quiet(folder / "ray.log"):
            sweep.fit()
    except BaseException:
        (folder / STOP).touch()
        _wait(folder / LIVE)
        raise
    finally:
        _end_of_runs(study, registry)
        shutil.rmtree(folder / "ray", ignore_errors=True)
        (folder / STOP).unlink(missing_ok=True)
    search.tell(study, progress)


def at_once(spec: Spec, *, slots: float, gpus: float, cores: int) -> int:
    """How many trials run at a time where Ray hands out so many cores and GPUs and the machine has `cores`.

    A trial's driver takes none of them. Raises InputError where not even one trial fits.
    """
    workers, tune = spec.train.workers, spec.tune
    most, kind = (int(gpus // workers), "GPUs") if gpus else (int(slots // workers), "cores")
    if most < 1:
        have = int(gpus or slots)
        raise InputError(f"train.workers: {workers} for each trial, and the cluster has {have} {kind}; write {have}")
    if tune.max_concurrent is not None:
        return min(most, tune.max_concurrent)
    # Ray hands out more cores than a small machine has, for replicas that idle; trials do not.
    return most if gpus else max(1, min(most, cores // workers))


@contextlib.contextmanager
def _quiet(file: Path) -> Iterator[None]:
    """Ray Tune without its tables and files, its remarks in `file`; what matters of them is told by us."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    log, remarks = logging.getLogger("ray.tune"), logging.FileHandler(file, delay=True)
    remarks.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    propagate, log.propagate = log.propagate, False
    log.addHandler(remarks)
    try:
        yield
    finally:
        log.removeHandler(remarks)
        remarks.close()
        log.propagate = propagate
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _wait(live: Path) -> None:
    """Until every trial has ended its workers, or the time for it is over."""
    until = time.monotonic() + _END
    while time.monotonic() < until and any(live.iterdir()):
        time.sleep(0.2)


def _end_of_runs(study: Study, registry: Registry) -> None:
    """No run of a trial that ended, or was interrupted, stays as RUNNING: its actor may have died before it said so."""
    for row in study.rows():
        if row.run_id and row.status != "finished":
            with contextlib.suppress(ShoalError):
                if registry.run(row.run_id).status == "RUNNING":
                    registry.end_run(row.run_id, "FAILED" if row.status == "failed" else "KILLED")
