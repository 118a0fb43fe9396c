"""`shoal train`."""

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
    """Fine-tune the model of FILE; the run and its model stand in the registry's store afterwards.

    An interrupted run of the same file goes on from its last checkpoint. A run that was finished with the same data,
    keys and code is not done again.

    \b
      shoal train reviews.yaml
      shoal train reviews.yaml train.epochs=1 train.learning_rate=1e-4
    """
    from cluster import tasks
    from cluster.cli import stages
    from cluster.registry import Registry
    from cluster.spec import load
    from train import run

    spec = load(file, overrides)
    tasks.trainable(spec)
    journal = stages.Journal()
    with Output(as_json=as_json) as out, stages.only_one(spec.name):
        with journal.stage("data"):
            prepared = stages.prepare(spec, out)
        registry = Registry()
        done = run.finished(spec, prepared, registry)  # what is there already needs no Ray
        with stages.session(out, done=done is not None):
            trained = stages.train(spec, prepared, registry, out, journal)
        result = {
            "name": spec.name,
            "run": trained.run_id,
            "model": str(trained.folder),
            "metrics": trained.metrics,
            "parallel": trained.parallel,
            "reused": trained.reused,
            "seconds": journal.seconds,
        }
        told = ", ".join(f"{key} {value:.4f}" for key, value in trained.metrics.items())
        if shares := trained.parallel:
            held = " and ".join(
                f"{max(shares[part]):,} of {name}"
                for part, name in (("parameters", "parameters"), ("optimizer", "optimizer state"))
            )
            told += f"\nshared {shares['strategy']} ({shares['why']}); a worker held at most {held}"
        out.result(result, f"run    {trained.run_id}\nmodel  {trained.folder}\n{told}\nnext: shoal evaluate {file}")
