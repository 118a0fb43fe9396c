"""`shoal serve`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cluster.cli.options import as_json, on_cluster
from cluster.cli.output import Output


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="FILE... [KEY=VALUE]...")
@as_json
@on_cluster(data=False)
def command(words: Sequence[str], as_json: bool) -> None:
    """Serve the model of each FILE, and leave it serving; other models are not touched.

    A file with training data serves its champion (`shoal models`); any other serves its `model` as it stands. With
    serve.rollout another version than the one that serves is tried beside it first (`shoal rollout`).

    \b
      shoal serve reviews.yaml digits.yaml
      shoal serve reviews.yaml serve.max_replicas=4
    """
    from cluster.cli import rollout, stages
    from cluster.registry import Registry
    from cluster.spec import load

    files = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if not files:
        raise click.UsageError("name at least one FILE")
    specs = [load(file, overrides) for file in files]
    registry = Registry()
    for spec in specs:  # every file is checked before anything is started
        stages.served_model(spec, registry)
    journal = stages.Journal()
    with Output(as_json=as_json) as out, stages.serving_session(out, journal) as cluster:
        served = []
        for spec in specs:
            with stages.only_one(spec.name):
                endpoint = stages.serve(spec, cluster, registry, out, journal)
            row = {"name": endpoint.name, "url": endpoint.url, "version": endpoint.version}
            served.append({**row, "rollout": endpoint.rollout} if endpoint.rollout else row)
        lines = []
        for row in served:
            lines.append(f"{row['name']}  {row['url']}  {row['version']}")
            lines += [f"  roll-out  {rollout.words(row['rollout'])}"] if "rollout" in row else []
        text = "\n".join(lines)
        out.result({"endpoints": served, "seconds": journal.seconds}, f"{text}\nstop with: shoal down [NAME]")
