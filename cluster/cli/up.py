"""`shoal up`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.options import as_json, file_and_overrides, on_cluster
from cluster.cli.output import Output
from cluster.cli.rollout import words

if TYPE_CHECKING:
    from cluster.cli.stages import Journal
    from cluster.spec import Spec


@click.command()
@file_and_overrides
@as_json
@on_cluster()
def command(file: str, overrides: Sequence[str], as_json: bool) -> None:
    """From data to a URL: plan, train, evaluate, gate, register and serve FILE.

    Run again, it does only what changed in the data, the file or the code. The model serves until `shoal down`.

    \b
      shoal up reviews.yaml
      shoal up reviews.yaml train.epochs=1 --json | tail -n 1
    """
    from cluster.spec import load

    spec = load(file, overrides)
    with Output(as_json=as_json) as out:
        result = run(spec, out)
        out.result(result, summary(result))


def run(spec: Spec, out: Output, journal: Journal | None = None) -> dict[str, Any]:
    """All stages of a file. Returns name, url, version, metrics, seconds by stage, and what had been done before."""
    from cluster import plan, tasks, tls
    from cluster.cli import ask, stages
    from cluster.registry import Registry

    journal = journal or stages.Journal()
    metrics: dict[str, float] = {}
    prepared = None
    tasks.servable(spec)
    with stages.only_one(spec.name):
        with journal.stage("plan"):
            for line in plan.here(spec).lines():
                out.say(line)
        if spec.data.train is not None:
            tasks.trainable(spec)
            with journal.stage("data"):
                prepared = stages.prepare(spec, out)
        with stages.serving_session(out, journal) as cluster:
            registry = Registry()
            if prepared is not None:
                trained = stages.train(spec, prepared, registry, out, journal)
                stages.evaluate(spec, prepared, trained, registry, out, journal)
                metrics = (stages.candidate(spec, registry) or registry.version(spec.name, alias="champion")).metrics
            endpoint = stages.serve(spec, cluster, registry, out, journal)
    file = tls.needed(cluster.listen, cluster.public_url)
    curl, python = ask.lines(spec.task, endpoint.url, ask.example(spec.task, prepared), file)
    return {
        "name": spec.name,
        "url": endpoint.url,
        "version": endpoint.version,
        "metrics": metrics,
        "seconds": journal.seconds,
        "reused": journal.reused,
        "rollout": endpoint.rollout,
        "curl": curl,
        "python": python,
    }


def summary(result: dict[str, Any]) -> str:
    """The result of `run`, for a person."""
    scores = "  ".join(f"{key} {value:.4f}" for key, value in result["metrics"].items())
    stages = "  ".join(f"{key} {value:.1f} s" for key, value in result["seconds"].items())
    return "\n".join(
        [
            f"{result['name']} is served as {result['version']}",
            *([f"  roll-out {words(result['rollout'])}"] if result.get("rollout") else []),
            f"  url      {result['url']}",
            *([f"  scores   {scores}"] if scores else []),
            f"  took     {stages}",
            "",
            f"  {result['curl']}",
            "",
            f"  {result['python']}",
            "",
            f"stop it with: shoal down {result['name']}     stop everything: shoal down",
        ]
    )
