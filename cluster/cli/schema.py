"""`shoal schema`."""

from __future__ import annotations

import json

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output


@click.command()
@click.argument("what", type=click.Choice(["model", "cluster"]), default="model")
@as_json
def command(what: str, as_json: bool) -> None:
    """Print the JSON Schema of a model's file, or of cluster.yaml, for editors and other programs.

    \b
      shoal schema > shoal.schema.json
      shoal schema cluster
    """
    from cluster.settings import Settings
    from cluster.spec.schema import schema_of, spec_schema
    from cluster.tasks import TASKS

    if what == "cluster":
        schema = schema_of(Settings, identifier="urn:shoal:cluster:v1", title="Shoal's cluster.yaml")
    else:
        schema = spec_schema({row.name: row.about() for row in TASKS.values()})
    with Output(as_json=as_json) as out:
        out.result(schema, json.dumps(schema, indent=2, ensure_ascii=False))
