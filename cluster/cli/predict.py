"""`shoal predict`."""

from __future__ import annotations

import json
import sys

import click

from cluster.cli.options import as_json, on
from cluster.cli.output import Output


@click.command()
@click.argument("model", metavar="NAME|FILE")
@click.argument("value", metavar="INPUT")
@on
@as_json
def command(model: str, value: str, on: str | None, as_json: bool) -> None:
    """Ask a served model. INPUT is a text, the path of a picture, the path of a CSV table, a JSON request, or - for
    standard input.

    \b
      shoal predict reviews "Best pizza in town"
      shoal predict digits samples/data/digits/test/7/0001.png
      shoal predict chat "What is the capital of France?"
      shoal predict reviews "Best pizza in town" --on prod
    """
    from pathlib import Path

    from cluster import connect
    from cluster.cli import ask, jobs
    from cluster.errors import NotFound
    from cluster.spec import load
    from cluster.submit import target
    from serve.run import find

    name = load(model).name if Path(model).suffix in (".yaml", ".yml") else model
    there = target.find(on)
    cluster = jobs.reached(there) if there else connect.running()
    if cluster is None:
        raise NotFound(f"{name}: nothing is served here; `shoal up FILE` or `shoal serve FILE` starts it")
    endpoint = find(name, cluster)
    content, content_type = ask.body(endpoint.task, sys.stdin.read() if value == "-" else value)
    answer = ask.send(cluster, ask.path(endpoint.task, endpoint.name), content, content_type)
    with Output(as_json=as_json) as out:
        out.result(answer, json.dumps(answer, indent=2, ensure_ascii=False))
