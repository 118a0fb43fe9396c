"""Training as a verb: found where it has been done, resumed where it was broken off, made otherwise."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import settings, tasks, weights
from cluster.accounts import usage
from cluster.errors import InputError, NotFound, ShoalError
from cluster.monitoring.record import Training
from cluster.plan import checks, parallel_of
from cluster.progress import Progress, silent
from cluster.registry import Registry, resolve
from cluster.spec import Spec
from cluster.tasks.row import Task
from train import code, events

if TYPE_CHECKING:
    from train.data import Prepared

# What decides how a model comes out; a change in one of these makes another run.
_CODE = ("loop.py", "objective.py", "batches.py", "optim.py", "checkpoint.py", "parallel/*.py", "tasks/*.py")
# Seconds between two writes to the registry.
_EVERY = 2.0
# Points of the curve that one write takes along, besides the validations.
_POINTS = 20


@dataclass(frozen=True)
class Trained:
    """A finished training run: its id in the registry, the model's local folder, its metrics, whether it was already
    there, and the seconds this call took. `parallel`: how workers shared the model ("strategy", "why") and how many
    elements each held, by rank ("parameters", "optimizer"); empty where nothing was learned by gradient."""

    run_id: str
    folder: Path
    metrics: dict[str, float]
    reused: bool
    seconds: float
    parallel: dict[str, Any] = field(default_factory=dict)


class Stopped(BaseException):
    """Raised by `watch` to end a run early: its workers are ended, and the registry says KILLED."""


# Called about once a second with the run's id and the events (train.events) that are new.
Watch = Callable[[str, list[dict[str, Any]]], None]


def key(spec: Spec, prepared: Prepared) -> str:
    """SHA-256 (hex) of all that decides the model: task, base model, data, the train section, and the code here.

    Raises InputError where the base model cannot be had.
    """
    reference = spec.model_ref()
    if reference.kind == "estimator":
        from importlib.metadata import version

        base = f"{reference.name} scikit-learn {version('scikit-learn')}"
    else:
        base = weights.digest(_base(spec))
    section = _section(spec)
    whole = [spec.task, base, prepared.digest, prepared.labels, section, code.digest(Path(__file__).parent, _CODE)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _section(spec: Spec) -> dict[str, Any]:
    """What of the train section decides the model. How often a lost worker is replaced and on which nodes they run
    changes nothing about it, nor what DeepSpeed would do if it were asked; auto is what it comes to."""
    spec, _ = _settled(spec)
    unused = {"max_failures", "node_pool"} | (set() if spec.train.parallel == "deepspeed" else {"deepspeed"})
    return spec.train.model_dump(exclude=unused)


def _settled(spec: Spec) -> tuple[Spec, str]:
    """The spec with `train.parallel` as it comes to on this machine, and why."""
    if spec.model_ref().kind == "estimator":
        return spec, ""
    choice = parallel_of(spec, _base(spec))
    train = spec.train.model_copy(update={"parallel": choice.parallel})
    return spec.model_copy(update={"train": train}), choice.why


def finished(spec: Spec, prepared: Prepared, registry: Registry) -> Trained | None:
    """The finished run of exactly this data, spec and code; None where there is none."""
    found = registry.find_run(spec.name, {"shoal.train_key": key(spec, prepared)})
    if found is None:
        return None
    try:
        metrics = json.loads(found.tags["shoal.metrics"])
        parallel = json.loads(found.tags.get("shoal.parallel", "{}"))
        return Trained(found.id, registry.run_folder(found.id), metrics, reused=True, seconds=0.0, parallel=parallel)
    except NotFound:
        return None  # its files were deleted: make them again


def place(spec: Spec, digest: str) -> Path:
    """The folder of a run while it is made; `digest` is its key."""
    return settings.home() / "runs" / f"{spec.name}-{digest[:12]}"


def train(
    spec: Spec,
    prepared: Prepared,
    *,
    registry: Registry,
    progress: Progress = silent,
    tags: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Train the model of a file on the attached Ray cluster. A run that is begun here gets `tags`.

    A run of the same key that finished is returned as it is; one that was killed goes on from its last checkpoint, in
    the same run of the registry. Raises InputError where the file is wrong, RunFailed where training fails, ClusterGone
    where Ray does, and what `watch` raises; on any of these, and on Ctrl-C, the run is ended in the registry as FAILED
    or KILLED.
    """
    started = time.monotonic()
    row = tasks.trainable(spec)
    _fits(spec, row)
    if (done := finished(spec, prepared, registry)) is not None:
        return done

    # The run: its folder, and its place in the registry, which a run that was broken off already has.
    digest = key(spec, prepared)
    folder = place(spec, digest)
    folder.mkdir(parents=True, exist_ok=True)
    journal = _Journal(folder, registry, progress, watch)
    run_id = journal.open(spec, prepared, digest, tags or {})

    # The work. The first step is some seconds of imports away.
    progress("train", 0, 0, "starting the workers")
    from train.job import Job
    from train.launch import launch

    base = Path() if spec.model_ref().kind == "estimator" else _base(spec, registry, progress)
    settled, why = _settled(spec)
    job = Job(spec=settled, data=prepared.folder, labels=prepared.labels, model=base, folder=folder)
    at_work, failed = time.monotonic(), False
    try:
        metrics = launch(job, journal.follow)
        journal.follow(last=True)
        # The best checkpoint's, which are not the last of the curves.
        parallel = journal.parallel | {"why": why} if journal.parallel else {}
        registry.set_tags(run_id, {"shoal.metrics": json.dumps(metrics), "shoal.parallel": json.dumps(parallel)})
        registry.log_artifacts(run_id, folder / "model", "model")
    except (KeyboardInterrupt, Stopped):
        registry.end_run(run_id, "KILLED")
        raise
    except BaseException as error:
        failed = True
        if isinstance(error, ShoalError):
            registry.set_tags(run_id, {"shoal.error": error.message})
        registry.end_run(run_id, "FAILED")
        raise
    finally:
        journal.shown.ended()
        verb = "tune" if "shoal.sweep" in (tags or {}) else "train"
        took = (time.monotonic() - at_work) * spec.train.workers
        usage.trained(spec.name, verb, seconds=took, failed=failed, tenant=settings.settings().access.tenant)
    registry.end_run(run_id)

    # The model is in the registry: what only served to make it goes.
    shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - started
    return Trained(run_id, registry.run_folder(run_id), metrics, reused=False, seconds=seconds, parallel=parallel)


class _Journal:
    """Carries what rank 0 tells in its file over to the registry and to whoever watches."""

    def __init__(self, folder: Path, registry: Registry, progress: Progress, watch: Watch | None) -> None:
        self._folder, self._file = folder, folder / "run.json"
        self._registry, self._progress, self._watch = registry, progress, watch
        self._state: dict[str, Any] = {"run_id": "", "offset": 0}
        self._pending: list[dict[str, Any]] = []
        self._wrote = time.monotonic()
        self._last: dict[str, Any] = {}
        self._note = ""

    @property
    def parallel(self) -> dict[str, Any]:
        """How workers share the model, as they told it last."""
        return self._state.get("parallel", {})

    def open(self, spec: Spec, prepared: Prepared, digest: str, more: Mapping[str, str]) -> str:
        """The id of the run: the one that was broken off, or a new one."""
        try:
            self._state = json.loads(self._file.read_text())
            run_id = self._registry.run(self._state["run_id"]).id
        except (OSError, ValueError, KeyError, TypeError, NotFound):
            tags = {
                "shoal.train_key": digest,
                "shoal.data_digest": prepared.digest,
                "shoal.task": spec.task,
                "shoal.base_model": spec.model,
                **more,
            }
            params = {
                "task": spec.task,
                "model": spec.model,
                "data": spec.data.model_dump(),
                "train": spec.train.model_dump(),
            }
            run_id = self._registry.start_run(spec.name, kind="train", params=params, tags=tags)
            self._registry.log_data(run_id, prepared.report["sources"], prepared.rows)
            self._state = {"run_id": run_id, "offset": 0}
            self._save()
        self.shown = Training(spec.name, run_id)
        return run_id

    def follow(self, *, last: bool = False) -> None:
        """Read what is new, tell of it, and every few seconds write it to the registry."""
        found, self._state["offset"] = events.read(self._folder, self._state["offset"])
        for event in found:
            if "warning" in event:
                logging.getLogger("shoal").warning("%s", event["warning"])
            else:
                self._last |= event
                self._state["parallel"] = event.get("parallel", self.parallel)
                self.shown.note(event)
                if "train/loss" in event.get("metrics", {}):
                    self._note = f"loss {event['metrics']['train/loss']:.3f}"
                self._pending.append(event)
        self.shown.refresh()
        if self._last:
            self._progress("train", self._last["step"], self._last["total"], self._note)
        if self._pending and (last or time.monotonic() - self._wrote > _EVERY):
            self._write()
        if self._watch is not None:
            self._watch(self._state["run_id"], found)

    def _write(self) -> None:
        run_id = self._state["run_id"]
        points = [event for event in self._pending if "metrics" in event]
        every = max(1, len(points) // _POINTS)
        for number, event in enumerate(reversed(points)):
            if number % every == 0 or "validation/loss" in event["metrics"]:
                self._registry.log(run_id, event["metrics"], step=event["step"])
        tags = {"shoal.step": str(self._last["step"]), "shoal.total_steps": str(self._last["total"])}
        if any("resumed" in event and event["resumed"] for event in self._pending):
            tags["shoal.resumed_at"] = str(max(event.get("resumed", 0) for event in self._pending))
        self._registry.set_tags(run_id, tags)
        self._pending, self._wrote = [], time.monotonic()
        self._save()

    def _save(self) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._state))
        os.replace(part, self._file)


def _base(spec: Spec, registry: Registry | None = None, progress: Progress = silent) -> Path:
    """The folder to start from. Raises InputError where it cannot be had, or has no weights and needs some."""
    try:
        return resolve(spec.model_ref(), registry, weights=not spec.train.from_scratch, progress=progress)
    except InputError as error:
        if "no weights" not in error.message:
            raise
        raise InputError(f"model: {error.message}; or start from random weights: train.from_scratch: true") from None


def _fits(spec: Spec, row: Task) -> None:
    """Refuse a model of the wrong kind for the task, and keys it makes nothing of, before anything is started. Raises
    InputError."""
    checks.keys(spec, row)
    estimator = spec.model_ref().kind == "estimator"
    if row.modality == "tabular" and not estimator:
        raise InputError(
            f"model: {spec.model}: {spec.task} takes a scikit-learn estimator, "
            "such as sklearn.ensemble.RandomForestClassifier"
        )
    if row.modality != "tabular" and estimator:
        raise InputError(f"model: {spec.model} is a scikit-learn estimator; {spec.task} takes a Hugging Face model")
    if estimator and spec.train.workers != 1:
        raise InputError(f"train.workers: {spec.train.workers}: an estimator learns in one worker; write 1")
    if estimator and spec.train.parallel != "auto":
        raise InputError(f"train.parallel: {spec.train.parallel}: an estimator learns in one worker; leave it out")
