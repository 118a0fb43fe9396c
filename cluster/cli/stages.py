"""The stages of a file, in order, each doing only what has not been done: what `train`, `evaluate`, `serve` and `up`
have in common. What was done is known by digests of data, spec and code that stand on the runs in the registry.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import tasks
from cluster.cli.output import Output
from cluster.errors import GateNotMet, InputError, RunFailed, ShoalError
from cluster.settings import home
from cluster.spec import Spec

if TYPE_CHECKING:
    from cluster.connect import Cluster
    from cluster.registry import Registry, Version
    from serve.run import Endpoint
    from train.data import Prepared
    from train.run import Trained

_JUDGED = "shoal.evaluate_key"  # of a run: by what it was judged


@dataclass
class Journal:
    """Seconds each stage took, and which found its work done already."""

    seconds: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    now: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began, self.now = time.monotonic(), name
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0) + time.monotonic() - began, 2)


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Hold a model's name while its file is being run. Raises RunFailed where another process has it."""
    from filelock import FileLock, Timeout

    folder = home() / "locks"
    folder.mkdir(exist_ok=True)
    owner = folder / f"{name}.owner"
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = owner.read_text() if owner.exists() else "another process"
        raise RunFailed(
            f"{name}: process {pid} is at work on this model in {home()}; wait for it (`shoal status`), or end it first"
        ) from None
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def session(out: Output, *, done: bool) -> AbstractContextManager[object]:
    """The Ray to work on; none is started where all is `done` already, and only told of again."""
    from cluster import connect

    return contextlib.nullcontext() if done else connect.session(progress=out.progress)


@contextmanager
def serving_session(out: Output, journal: Journal) -> Iterator[Cluster]:
    """Attach to the cluster and leave it running; what this call started is stopped where nothing came to be served."""
    from cluster import connect
    from serve.run import endpoints

    in_vain = False
    try:
        with contextlib.ExitStack() as stack:
            with journal.stage("ray"):
                cluster = stack.enter_context(connect.session(keep=True, progress=out.progress))
            try:
                yield cluster
            except BaseException:
                with contextlib.suppress(ShoalError):  # a cluster that is gone serves nothing either
                    in_vain = cluster.started and all(one.state == "DELETING" for one in endpoints(cluster))
                raise
    finally:
        if in_vain:
            connect.down()


def prepare(spec: Spec, out: Output) -> Prepared:
    """Read, check and split the data of a file; says what of it a reader should know."""
    from train.data import prepare

    prepared = prepare(spec, into=home() / "data", progress=out.progress)
    rows = ", ".join(f"{count} {split}" for split, count in prepared.rows.items())
    classes = f"{len(prepared.labels)} classes; " if prepared.labels else ""
    out.say(f"data: {rows}; {classes}digest {prepared.digest[:12]}")
    for note in prepared.report.get("notes", []):
        out.say(f"data: {note}")
    return prepared


def train(spec: Spec, prepared: Prepared, registry: Registry, out: Output, journal: Journal) -> Trained:
    """A finished run of exactly this data, spec and code: found, resumed or made."""
    from train.run import train

    with journal.stage("train"):
        trained = train(spec, prepared, registry=registry, progress=out.progress)
    if trained.reused:
        journal.reused.append("train")
        out.say(f"train: nothing changed since run {trained.run_id}")
    return trained


def evaluate(
    spec: Spec, prepared: Prepared, trained: Trained, registry: Registry, out: Output, journal: Journal
) -> Version:
    """Judge a run and make it a version, unless that is done: the champion, or with serve.rollout the candidate. Raises
    GateNotMet where a gated metric falls short."""
    from train import score

    with journal.stage("evaluate"):
        if (before := verdict(spec, prepared, trained, registry)) is not None:
            journal.reused.append("evaluate")
            out.say(f"evaluate: nothing changed since run {trained.run_id} was judged")
            passed, reason = before
        else:
            result = score.evaluate(
                spec, prepared, trained.folder, registry=registry, run_id=trained.run_id, progress=out.progress
            )
            out.say(result.table())
            passed, reason = result.passed, result.gate_text()
            gate = {"shoal.gate": "passed" if passed else "failed", "shoal.gate_text": reason}
            registry.set_tags(trained.run_id, {**gate, _JUDGED: _judged_key(spec, prepared, trained)})
    if not passed:
        raise GateNotMet(
            f"evaluate.gate: {reason}; run {trained.run_id} was not promoted, what is served stays as it is. "
            f"Train longer, change the data, or ask for less"
        )
    with journal.stage("register"):
        return _accept(spec, trained, registry, out, journal)


def verdict(spec: Spec, prepared: Prepared, trained: Trained, registry: Registry) -> tuple[bool, str] | None:
    """Whether a run passed its gate, and why not, where it was judged already by just what the file says."""
    tags = registry.run(trained.run_id).tags
    if tags.get(_JUDGED) != _judged_key(spec, prepared, trained):
        return None
    return tags["shoal.gate"] == "passed", tags.get("shoal.gate_text", "")


def _judged_key(spec: Spec, prepared: Prepared, trained: Trained) -> str:
    from train import score

    return _digest(trained.run_id, spec.evaluate.model_dump(), prepared.digest, score.code())


def _accept(spec: Spec, trained: Trained, registry: Registry, out: Output, journal: Journal) -> Version:
    """The version of a run that passed; made once. A version already made is not promoted again: a roll-back holds."""
    for version in registry.versions(spec.name):
        if version.run_id == trained.run_id:
            journal.reused.append("register")
            return version
    run = registry.run(trained.run_id)
    metrics = judged(run.metrics)
    kept = ("shoal.train_key", "shoal.data_digest", "shoal.code", _JUDGED, "shoal.gate")
    kept = (*kept, "shoal.sweep", "shoal.trial", "shoal.tuned")  # of the best trial of a sweep
    tags = {key: run.tags[key] for key in kept if key in run.tags}
    tags |= {"shoal.task": spec.task, "shoal.base_model": spec.model}
    candidate = spec.serve.rollout is not None
    version = registry.register(spec.name, trained.run_id, metrics=metrics, tags=tags, candidate=candidate)
    out.say(f"registered {version.uri}, {' and '.join(version.aliases)} of {spec.name}")
    return version


def judged(metrics: dict[str, float]) -> dict[str, float]:
    """The evaluation's metrics of a run, under their own names."""
    return {key.removeprefix("test/"): value for key, value in metrics.items() if key.startswith("test/")}


def served_model(spec: Spec, registry: Registry) -> tuple[str, Path]:
    """What `serve` serves for a file: the champion where the file trains one, with serve.rollout the candidate where
    there is one; else its `model`. A name and a folder."""
    from cluster.registry import resolve

    tasks.servable(spec)
    if spec.data.train is not None:
        version = candidate(spec, registry) or registry.version(spec.name, alias="champion")
        return version.uri, version.folder
    reference = spec.model_ref()
    if reference.kind == "estimator":
        raise InputError(
            f"model: {spec.model} is an estimator that has learned nothing; give data.train and `shoal up`"
        )
    if reference.kind == "registry":
        version = registry.version(reference.name, alias=reference.alias, version=reference.version)
        return version.uri, version.folder
    return spec.model, resolve(reference, registry)


def candidate(spec: Spec, registry: Registry) -> Version | None:
    """The version that a file with serve.rollout has waiting to be tried."""
    if spec.serve.rollout is None:
        return None
    return next((one for one in registry.versions(spec.name) if "candidate" in one.aliases), None)


def serve(spec: Spec, cluster: Cluster, registry: Registry, out: Output, journal: Journal) -> Endpoint:
    """Deploy what `served_model` names; nothing happens where exactly that is being served. A candidate is tried beside
    the champion, which is served first where it is not."""
    from serve.rollout.begin import deploy
    from serve.run import endpoints

    with journal.stage("serve"):
        tried = candidate(spec, registry) if spec.data.train is not None else None
        if tried is not None and spec.name not in {one.name for one in endpoints(cluster)}:
            champion = registry.version(spec.name)
            deploy(spec, model_uri=champion.uri, folder=champion.folder, cluster=cluster, progress=out.progress)
        uri, folder = served_model(spec, registry)
        return deploy(spec, model_uri=uri, folder=folder, cluster=cluster, progress=out.progress)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
