"""`shoal logs`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from cluster.cli.options import as_json, on


@click.command()
@click.argument("name", required=False)
@click.option("-n", "--lines", default=40, show_default=True, type=click.IntRange(min=0), help="Lines of each file.")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines are written, until Ctrl-C.")
@click.option("--all", "everything", is_flag=True, help="Ray's own daemons too.")
@on
@as_json
@click.pass_context
def command(
    context: click.Context, name: str | None, lines: int, follow: bool, everything: bool, on: str | None, as_json: bool
) -> None:
    """Print logs: of the model NAME (its replicas and its training), or of everything that runs here.

    With --on NAME is a run there (`shoal status --on`), and -f ends with its exit code; Ctrl-C leaves it running.

    \b
      shoal logs reviews -f
      shoal logs --all -n 200
      shoal logs train-reviews-20261124-150312-ab12 -f --on prod
    """
    from cluster import connect
    from cluster.errors import InputError, NotFound
    from cluster.submit.target import find

    if (target := find(on)) is not None:
        from cluster.cli import jobs

        if name is None:
            raise InputError(f"{target.name}: the logs of which run? `shoal status{target.option}` lists them")
        context.exit(jobs.logs(jobs.on_which(on, name), name, count=lines, follow=follow, as_json=as_json))
    folder = connect.logs_folder()
    if folder is None:
        raise NotFound("no logs: no cluster has run here since the last `shoal down`")
    files = chosen(folder, name, everything=everything)
    if not files:
        raise NotFound(
            f"{name or 'logs'}: no log file in {folder}; `shoal logs --all` shows Ray's own, "
            "`shoal logs RUN --on NAME` what a run on a cluster printed"
        )
    for file, line in tail(files, lines, follow=follow):
        text = readable(line, everything=everything)
        if text:
            click.echo(json.dumps({"file": file.name, "line": text}) if as_json else f"{file.stem[:40]}: {text}")
    if as_json:
        click.echo(json.dumps({"files": [str(file) for file in files]}))


def readable(line: str, *, everything: bool) -> str:
    """A line as a person reads it: Ray Train writes JSON objects, of which the steps of its own work are left out."""
    text = line.rstrip()
    if not text.startswith("{"):
        return text
    try:
        record = json.loads(text)
        if record["levelname"] == "DEBUG" and not everything:
            return ""
        return f"{record['asctime']} {record['levelname']} {record['message']}"
    except (ValueError, KeyError, TypeError):
        return text


def chosen(folder: Path, name: str | None, *, everything: bool) -> list[Path]:
    """The log files of a model (named after it by Serve and Train), of every model, or simply all."""
    if everything:
        files = [file for file in folder.rglob("*") if file.suffix in (".log", ".out", ".err")]
    else:
        files = [*folder.glob("serve/*.log"), *folder.glob("train/*.log")]
        if name is not None:
            files = [file for file in files if _is_of(file, name)]
    return sorted(file for file in files if file.stat().st_size > 0)


def _is_of(file: Path, name: str) -> bool:
    """serve/replica_NAME_Model_xyz.log by its name; train/*.log by the run's name, which stands in its lines."""
    if file.parent.name == "serve":
        return f"_{name}_" in file.name
    with file.open(encoding="utf-8", errors="replace") as lines:
        return any(f"{name}-" in line for line in lines)


def tail(files: list[Path], count: int, *, follow: bool) -> Iterator[tuple[Path, str]]:
    """The last `count` lines of each file, then what is added, if asked."""
    handles: list[tuple[Path, IO[str]]] = []
    for file in files:
        handle = file.open(encoding="utf-8", errors="replace")
        handles.append((file, handle))
        for line in handle.readlines()[-count:] if count else handle.readlines()[:0]:
            yield file, line
    while follow:
        news = [(file, line) for file, handle in handles for line in handle.readlines()]
        yield from news
        if not news:
            time.sleep(0.3)
