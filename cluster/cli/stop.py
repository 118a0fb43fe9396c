"""`shoal stop`."""

from __future__ import annotations

import time

import click

from cluster.cli.options import as_json, on
from cluster.cli.output import Output

PATIENCE_S = 90.0  # a job has a third of it before Ray kills it


@click.command()
@click.argument("run")
@on
@as_json
def command(run: str, on: str | None, as_json: bool) -> None:
    """End a RUN that `--on` started on a cluster, and return when it is over. What it had saved stays: the same
    command again goes on from its last checkpoint.

    \b
      shoal status --on prod                                          what runs there
      shoal stop train-reviews-20261124-150312-ab12 --on prod

    On this machine Ctrl-C ends a run, and `shoal down` what is served.
    """
    from cluster.cli.jobs import on_which
    from cluster.errors import RunFailed

    jobs = on_which(on, run)
    with Output(as_json=as_json) as out:
        job = jobs.job(run)
        was_over = job.over
        began = time.monotonic()
        if not was_over:
            jobs.stop(run)
        while not job.over:
            if (spent := time.monotonic() - began) > PATIENCE_S:
                raise RunFailed(f"{run}: does not end; `shoal status {run}{jobs.target.option}` looks again")
            out.progress("stop", min(spent, PATIENCE_S - 1), PATIENCE_S)
            time.sleep(0.5)
            job = jobs.job(run)
        said = f"{run} was over already ({job.status})" if was_over else f"{run} is over ({job.status})"
        out.result({"run": run, "status": job.status, "stopped": not was_over}, said)
