"""`shoal tune`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.options import as_json, file_and_overrides, on_cluster
from cluster.cli.output import Output

if TYPE_CHECKING:
    from tune.run import Swept


@click.command()
@file_and_overrides
@as_json
@on_cluster()
def command(file: str, overrides: Sequence[str], as_json: bool) -> None:
    """Sweep over what the `tune` section of FILE says, then judge and register the best trial.

    Each trial is a run of `shoal train` with other values, drawn by Optuna; those that fall behind are ended early.
    Interrupted, even by a power cut, the same command goes on: no trial that has ended is run again, others go on from
    their last checkpoint. The best trial is judged as by `shoal evaluate` and becomes the champion if it passes the
    gate. A page with table, curves and importance of the keys is written.

    \b
      shoal tune reviews.yaml
      shoal tune reviews.yaml tune.trials=8 train.epochs=1
      shoal tune reviews.yaml 'tune.space={train.learning_rate: {loguniform: [1e-6, 1e-3]}}'
    """
    from cluster import tasks
    from cluster.cli import stages
    from cluster.errors import GateNotMet
    from cluster.registry import Registry
    from cluster.spec import load
    from train import score
    from tune import report
    from tune.run import ended, finish, sweep

    spec = load(file, overrides)
    tasks.trainable(spec)
    score.check(spec)
    journal = stages.Journal()
    with Output(as_json=as_json) as out, stages.only_one(spec.name):
        with journal.stage("data"):
            prepared = stages.prepare(spec, out)
        registry = Registry()
        done = ended(spec, prepared, registry)  # what was swept and judged already needs no Ray
        known = done is not None and stages.verdict(done[0], prepared, done[1], registry) is not None
        with stages.session(out, done=known):
            with journal.stage("tune"):
                swept = sweep(spec, prepared, registry=registry, progress=out.progress, say=out.say)
            failed, version = None, None
            try:
                version = stages.evaluate(swept.spec, prepared, swept.trained, registry, out, journal)
            except GateNotMet as error:
                failed = error
        # A sweep that has just ended decides what is in force; one that ended before has had its say.
        if version is not None and not swept.reused and "champion" not in version.aliases:
            version = registry.promote(spec.name, version.version)
        scores = stages.judged(registry.run(swept.trained.run_id).metrics)
        with journal.stage("report"):
            page = report.write(swept, registry, spec, scores=scores, version=version.uri if version else str(failed))
            finish(swept, registry, page.parent)
        if failed is not None:
            raise GateNotMet(f"{failed.message}. The sweep's report: {page.as_uri()}")
        result = _result(swept, spec.name, scores) | {
            "version": version.uri if version else None,
            "report": page.as_uri(),
            "keep": report.keep(file, swept),
            "seconds": journal.seconds,
        }
        out.result(result, _told(result, report.table(swept)))


def _result(swept: Swept, name: str, scores: dict[str, float]) -> dict[str, Any]:
    return {
        "name": name,
        "run": swept.run_id,
        "reused": swept.reused,
        "trials": {
            status: sum(row.status == status for row in swept.rows) for status in ("finished", "pruned", "failed")
        },
        "best": {
            "trial": swept.best.number,
            "run": swept.trained.run_id,
            "values": swept.best.values,
            "value": swept.best.value,
        },
        "metrics": scores,
    }


def _told(result: dict[str, Any], table: str) -> str:
    scores = "  ".join(f"{key} {value:.4f}" for key, value in result["metrics"].items())
    return "\n".join(
        [
            *(["nothing changed since this sweep ended", ""] if result["reused"] else []),
            table,
            "",
            f"best     trial {result['best']['trial']}, run {result['best']['run']}",
            f"version  {result['version']}",
            f"scores   {scores}",
            f"report   {result['report']}",
            f"keep it  {result['keep']}",
        ]
    )
