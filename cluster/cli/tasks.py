"""`shoal tasks`."""

from __future__ import annotations

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output, table


@click.command()
@click.option("--modality", metavar="NAME", help="Only text, vision, audio, tabular, multimodal or video.")
@as_json
def command(modality: str | None, as_json: bool) -> None:
    """List the tasks, and which of them can be trained and served, read off the code that is really here.

    \b
      shoal tasks
      shoal tasks --modality text --json
    """
    from cluster.errors import InputError
    from cluster.tasks import TASKS

    known = list(dict.fromkeys(row.modality for row in TASKS.values()))
    if modality is not None and modality not in known:
        raise InputError(f"--modality: {modality!r} is none; write one of {', '.join(known)}")
    rows = [row for row in TASKS.values() if modality in (None, row.modality)]
    value = [
        {
            "name": row.name,
            "modality": row.modality,
            "train": row.trainable,
            "serve": row.servable,
            "request": row.request,
            "response": row.response,
            "columns": row.columns,
            "metrics": list(row.metrics),
        }
        for row in rows
    ]
    marks = {True: "yes", False: "-"}
    cells = [[row.name, row.modality, marks[row.trainable], marks[row.servable], row.request] for row in rows]
    with Output(as_json=as_json) as out:
        out.result(value, table(["task", "modality", "train", "serve", "request"], cells))
