"""`shoal plan`."""

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
    """Say what FILE would do and what it would cost in memory, disk and steps, and do nothing.

    Sizes are read from headers and counted rows; memory is an estimate, good to a factor of about two.

    \b
      shoal plan reviews.yaml
      shoal plan reviews.yaml train.workers=2 --json
    """
    from cluster import plan
    from cluster.plan import sweep
    from cluster.spec import load

    spec = load(file, overrides)
    found = plan.here(spec)
    told = [*found.lines(), *sweep.lines(spec, steps=found.steps)]
    with Output(as_json=as_json) as out:
        out.result(found.to_dict(), "\n".join(told))
