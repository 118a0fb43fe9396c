"""`shoal init`."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output


@click.command()
@click.argument("task")
@click.option("-o", "--output", "file", metavar="FILE", help="Write FILE, which must not exist yet.")
@as_json
def command(task: str, file: str | None, as_json: bool) -> None:
    """Print a commented file to start from, with every key, its default and what it means.

    \b
      shoal init text-classification > reviews.yaml
      shoal init image-classification -o digits.yaml
    """
    from cluster import tasks
    from cluster.errors import InputError, RunFailed
    from cluster.spec.template import template

    row = tasks.get(task)
    able = [name for name, other in tasks.TASKS.items() if other.trainable or other.servable]
    if row.name not in able:
        raise InputError(f"init: {task} can be neither trained nor served yet; these can: {', '.join(able)}")
    text = template(
        row.name,
        modality=row.modality,
        columns=row.columns,
        train=row.trainable,
        serve=row.servable,
        about=row.about(),
    )
    if file is not None:
        try:
            with Path(file).open("x", encoding="utf-8") as target:
                target.write(text)
        except FileExistsError:
            raise InputError(f"-o {file}: is there already and is not overwritten; name another file") from None
        except OSError as error:
            raise RunFailed(f"-o {file}: cannot be written: {error.strerror}") from None
    with Output(as_json=as_json) as out:
        value = {"task": row.name, "file": file, "text": text}
        out.result(value, text.rstrip("\n") if file is None else f"{file} is written; next: shoal plan {file}")
