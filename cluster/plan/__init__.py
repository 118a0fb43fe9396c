"""What a file would do and cost, said before anything is spent. Imports no torch and starts nothing."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import engine, tasks
from cluster.errors import InputError
from cluster.plan import checks, machine, measure
from cluster.plan.show import binary, lines_of
from cluster.plan.strategy import Choice, settle
from cluster.spec import Spec
from cluster.tasks.row import Task

__all__ = ["Choice", "Plan", "here", "parallel_of", "plan"]


@dataclass(frozen=True)
class Plan:
    """A plan. Sizes are bytes; what cannot be known before it is fetched is None. `memory_worker`, `steps`,
    `rows_per_pass`, `parallel` (how workers share the model, and why) and `learning` (parameters that learn) are None
    where nothing is trained by gradient."""

    name: str
    task: str
    stages: tuple[str, ...]
    model: str
    model_kind: str
    parameters: int | None
    model_bytes: int | None
    rows: dict[str, int | None]
    data_bytes: int | None
    steps: int | None
    steps_per_epoch: int | None
    rows_per_pass: int | None
    workers: int
    parallel: str | None
    parallel_why: str | None
    learning: int | None
    memory_worker: dict[str, int] | None
    memory_training: int | None
    memory_replica: int | None
    memory_free: int
    disk: int | None
    disk_free: int
    cores: int
    replicas: tuple[int, int]
    metrics: tuple[str, ...]
    gate: dict[str, float]
    fits: bool | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The plan as text, a line a subject."""
        return lines_of(self)


def here(spec: Spec) -> Plan:
    """The plan on this machine. Raises InputError as `plan` does."""
    found = machine.here()
    return plan(
        spec,
        cores=found.cores,
        memory=found.memory,
        free_disk=found.free_disk,
        gpus=found.gpus,
        slots=found.slots,
        memory_all=found.memory_all,
        memory_gpu=found.memory_gpu,
    )


def parallel_of(spec: Spec, folder: Path) -> Choice:
    """How workers of this machine share the model that lies in `folder`: what the plan says, for those who train."""
    if spec.train.parallel != "auto" or spec.train.workers == 1:
        return settle(spec.train, whole=None, memory=None, gpus=0)
    found = machine.here()
    row = tasks.trainable(spec)
    try:
        size, shape, _ = measure.at(folder, spec, [])
    except InputError:
        size = shape = None  # what is wrong with the folder is told by who opens it
    return _settled(spec, row, size, shape, found.gpus, found.memory_all or found.memory, found.memory_gpu)


def _settled(
    spec: Spec, row: Task, size: int | None, shape: Any, gpus: int, memory: int, memory_gpu: int | None
) -> Choice:
    whole = sum(measure.training(spec, row, size, shape, gpus, [], "ddp").values()) if size is not None else None
    return settle(spec.train, whole=whole, memory=memory_gpu if gpus else memory // spec.train.workers, gpus=gpus)


def plan(
    spec: Spec,
    *,
    cores: int,
    memory: int,
    free_disk: int,
    gpus: int = 0,
    slots: int | None = None,
    memory_all: int | None = None,
    memory_gpu: int | None = None,
) -> Plan:
    """The plan on a machine with so many cores, bytes of free memory and disk, and GPUs; `slots` is how many cores its
    Ray hands out (None: four times the cores), `memory_all` its memory, free or not (None: what is free), `memory_gpu`
    that of its smallest GPU (None: not known).

    Raises InputError for what can never work: a task without code, a model or data that is not there, a metric that the
    task has not, more workers, replicas or GPUs than there are.
    """
    # What is to be done: files with training data are trained, others are served as they stand.
    trains = spec.data.train is not None
    row = tasks.trainable(spec) if trains else tasks.servable(spec)
    stages = ("data", "train", "evaluate", *(("gate",) if spec.evaluate.gate else ()), "register") if trains else ()
    checks.metrics(spec, row)
    checks.kind(spec, row, trains)
    checks.keys(spec, row)
    checks.room(spec, trains, gpus, slots if slots is not None else 4 * cores)
    notes: list[str] = []

    # The model, by what its files say, and the data, by rows counted.
    size, shape, stored = measure.model(spec, notes)
    counted = measure.data(spec, notes) if trains else {}
    rows = measure.split(spec, counted)

    # The steps, and the memory of one of them.
    gradient = trains and spec.model_ref().kind != "estimator"
    workers = spec.train.workers if gradient else 1
    steps = steps_per_epoch = per_pass = parts = shared = None
    if gradient:
        per_pass = measure.rows_per_pass(spec.train)
        if rows.get("train"):
            steps_per_epoch = math.ceil((rows["train"] or 0) / spec.train.batch_size)
            steps = max(1, math.ceil(spec.train.epochs * steps_per_epoch - 1e-9))
        shared = _settled(spec, row, size, shape, gpus, memory_all or memory, memory_gpu)
        if size is not None:
            parts = measure.training(spec, row, size, shape, gpus, notes, shared.parallel)

    # Whether it fits, and what a person would want to know beforehand.
    total = sum(parts.values()) * workers if parts else None
    if trains and not gradient:
        notes.append("memory of fitting a scikit-learn estimator is not estimated")
    replica = measure.replica(size, stored, trains)
    if replica is not None and row.name == engine.TASK:
        replica = 0 if spec.serve.llm.onto else replica + engine.memory(spec)
    disk = measure.disk(size if gradient else 0, counted) if trains else None
    need = max(total or 0, (replica or 0) * spec.serve.min_replicas)
    known = total is not None or replica is not None
    fits = need <= memory and (disk or 0) <= free_disk if known else None
    warnings = checks.warnings(spec, rows, gradient, cores, gpus)
    if need > memory:
        warnings.append(
            "more memory is needed than is free: lower train.batch_size, raise train.gradient_accumulation_steps, "
            "or take a smaller model"
        )
    on_gpu = sum(part for name, part in parts.items() if "on the host" not in name) if parts else 0
    if gpus and memory_gpu is not None and on_gpu > memory_gpu:
        fits = False
        warnings.append(
            f"a worker needs {binary(on_gpu)} of a GPU's {binary(memory_gpu)}: more train.workers with parallel: fsdp, "
            "parallel: deepspeed with zero_stage: 3 and offload: cpu, or a smaller train.batch_size"
        )
    if disk is not None and disk > free_disk:
        warnings.append("more disk is needed than is free: free some, or set SHOAL_HOME to a larger one")
    return Plan(
        name=spec.name,
        task=row.name,
        stages=(*stages, "serve") if row.servable else stages,
        model=spec.model,
        model_kind=spec.model_ref().kind,
        parameters=size,
        model_bytes=stored,
        rows=rows,
        data_bytes=measure.total(counted),
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        rows_per_pass=per_pass,
        workers=workers,
        parallel=shared.parallel if shared else None,
        parallel_why=shared.why if shared else None,
        learning=measure.learning(spec, size, shape, []) if gradient and size is not None else None,
        memory_worker=parts,
        memory_training=total,
        memory_replica=replica,
        memory_free=memory,
        disk=disk,
        disk_free=free_disk,
        cores=cores,
        replicas=(spec.serve.min_replicas, spec.serve.max_replicas),
        metrics=tuple(spec.evaluate.metrics) or row.metrics,
        gate=dict(spec.evaluate.gate),
        fits=fits,
        notes=tuple(notes),
        warnings=tuple(warnings),
    )
