"""`shoal evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cluster.cli.options import as_json, file_and_overrides, on_cluster
from cluster.cli.output import Output


@click.command()
@file_and_overrides
@as_json
@on_cluster()
def command(file: str, overrides: Sequence[str], as_json: bool) -> None:
    """Judge the trained model of FILE on `data.test`, and register it where it passes its gate.

    A model that passes `evaluate.gate` becomes a version, and the champion. Below the gate nothing is promoted and
    the exit code is 1.

    \b
      shoal evaluate reviews.yaml
      shoal evaluate reviews.yaml 'evaluate.gate={f1: 0.9}'
    """
    from cluster import tasks
    from cluster.cli import stages
    from cluster.errors import NotFound
    from cluster.registry import Registry
    from cluster.spec import load
    from train import run, score

    spec = load(file, overrides)
    tasks.trainable(spec)
    score.check(spec)
    journal = stages.Journal()
    with Output(as_json=as_json) as out, stages.only_one(spec.name):
        prepared = stages.prepare(spec, out)
        registry = Registry()
        trained = run.finished(spec, prepared, registry)
        if trained is None:
            raise NotFound(f"{file}: no finished run of this data, spec and code; `shoal train {file}` makes one")
        done = stages.verdict(spec, prepared, trained, registry)
        with stages.session(out, done=done is not None):
            version = stages.evaluate(spec, prepared, trained, registry, out, journal)
        metrics = stages.judged(registry.run(trained.run_id).metrics)
        told = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        result = {"name": spec.name, "run": trained.run_id, "version": version.uri, "metrics": metrics}
        out.result(result | {"seconds": journal.seconds}, f"{version.uri}\n{told}\nnext: shoal serve {file}")
