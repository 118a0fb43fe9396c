"""What a plan refuses, and what it warns of."""

from __future__ import annotations

import difflib

from cluster.errors import InputError
from cluster.spec import Spec
from cluster.tasks.row import Task


def metrics(spec: Spec, row: Task) -> None:
    """Refuse a metric that the task has not."""
    for key, names in (("evaluate.metrics", spec.evaluate.metrics), ("evaluate.gate", list(spec.evaluate.gate))):
        for name in names:
            if name not in row.metrics:
                near = difflib.get_close_matches(name, row.metrics, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}? " if near else ""
                raise InputError(f"{key}: {name!r} is no metric of {row.name}; {hint}it has {', '.join(row.metrics)}")


def room(spec: Spec, trains: bool, gpus: int, slots: int) -> None:
    """Refuse what would wait for ever."""
    serve = spec.serve
    if serve.num_gpus * max(1, serve.min_replicas) > gpus:
        have = f"there are {gpus}" if gpus else "this machine has none"
        raise InputError(
            f"serve.num_gpus: {serve.num_gpus:g} for each of {max(1, serve.min_replicas)} replicas, {have}; lower it"
        )
    if trains and spec.model_ref().kind != "estimator" and spec.train.workers > slots:
        raise InputError(
            f"train.workers: {spec.train.workers} workers of one core each, and Ray hands out {slots}; "
            "lower it, or raise ray.num_cpus in cluster.yaml"
        )
    if serve.num_cpus * max(1, serve.min_replicas) > slots:
        raise InputError(
            f"serve.num_cpus: {serve.num_cpus:g} for each of {max(1, serve.min_replicas)} replicas, and Ray hands out "
            f"{slots}; lower it or serve.min_replicas, or raise ray.num_cpus in cluster.yaml"
        )


def kind(spec: Spec, row: Task, trains: bool) -> None:
    """Refuse a model that is none for the task."""
    estimator = spec.model_ref().kind == "estimator"
    if estimator and row.modality != "tabular":
        raise InputError(
            f"model: {spec.model!r} is a scikit-learn estimator, for tabular tasks; {row.name} takes others"
        )
    if estimator and trains and spec.train.parallel != "auto":
        raise InputError(
            f"train.parallel: {spec.train.parallel}: an estimator is fitted whole by one worker; leave it out"
        )
    if estimator and not trains:
        raise InputError(f"model: {spec.model!r} has learned nothing yet; give data.train, or serve models:/name@alias")
    if trains and row.modality == "tabular" and not estimator:
        raise InputError(f"model: {spec.model!r}: {row.name} learns with an estimator such as sklearn.svm.SVC")


def keys(spec: Spec, row: Task) -> None:
    """Refuse keys of `train` that the task can make nothing of."""
    classes = "label" in row.columns
    if spec.train.lora is not None and classes:
        raise InputError(f"train.lora: {row.name} is trained with all its weights; leave it out")
    if spec.train.class_weights != "none" and not classes:
        raise InputError(f"train.class_weights: {row.name} has no classes; leave it out")


def warnings(spec: Spec, rows: dict[str, int | None], gradient: bool, cores: int, gpus: int) -> list[str]:
    """What works, and may not be what was meant."""
    train, found = spec.train, []
    trains = rows.get("train")
    if trains is not None and trains < train.batch_size and gradient:
        found.append(f"train.batch_size: {train.batch_size} is more than the {trains} training rows")
    if trains is not None and spec.data.validation is None and spec.data.validation_split == 0:
        found.append("data.validation_split: 0: nothing is held out to watch while training")
    if spec.data.train is not None and spec.data.test is None:
        judged = "the gate is judged" if spec.evaluate.gate else "the metrics are taken"
        found.append(f"data.test: not given: {judged} on the validation rows, which also choose the checkpoint")
    if spec.data.train is not None and not gradient and train.workers > 1:
        found.append(f"train.workers: {train.workers}: a scikit-learn estimator is fitted by one worker")
    if gradient and train.workers > cores and not gpus:
        found.append(f"train.workers: {train.workers} workers share {cores} cores: no faster than {cores} would be")
    if gradient and train.workers * train.gradient_accumulation_steps > train.batch_size:
        found.append(
            f"train.batch_size: {train.batch_size} rows are fewer than train.workers x "
            f"train.gradient_accumulation_steps: some passes hold padding only"
        )
    elif gradient and (padding := -train.batch_size % (parts := train.workers * train.gradient_accumulation_steps)):
        by = f"{train.workers} workers" + (
            f" x {train.gradient_accumulation_steps} passes" if train.gradient_accumulation_steps > 1 else ""
        )
        low = train.batch_size // parts * parts
        found.append(
            f"train.batch_size: {train.batch_size} does not divide by {by}: each step computes {padding} "
            f"row{'s' if padding > 1 else ''} of padding, which count for nothing; {low} or {low + parts} divide"
        )
    return found
