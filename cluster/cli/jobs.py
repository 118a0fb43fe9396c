"""What `status`, `logs` and `stop` tell of the runs on a cluster."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.output import table
from cluster.errors import InputError
from cluster.submit.client import Job, Jobs
from cluster.submit.target import Target, find

if TYPE_CHECKING:
    from cluster.connect import Cluster


def on_which(on: str | None, run: str) -> Jobs:
    """The jobs of the cluster that is meant. Raises InputError where none is."""
    if (target := find(on)) is None:
        raise InputError(
            f"{run}: on which cluster? Add --on NAME of cluster.yaml, or set RAY_ADDRESS to the dashboard's URL"
        )
    return Jobs(target)


def reached(target: Target) -> Cluster:
    """A cluster as far as its dashboard and its gateway can be reached from here."""
    from cluster import attached
    from cluster.connect import Cluster
    from cluster.settings import home

    entrance = attached.entrance(target.address, target.token)
    return Cluster("", target.address, entrance.url, entrance.listen, home(), token=target.token)


def described(job: Job) -> dict[str, Any]:
    """A job for --json."""
    last = job.ended or datetime.now(UTC)
    return {
        "run": job.id,
        "status": job.status,
        "verb": job.metadata.get("shoal.verb", ""),
        "name": job.metadata.get("shoal.name", ""),
        "user": job.metadata.get("shoal.user", ""),
        "version": job.metadata.get("shoal.version", ""),
        "command": job.metadata.get("shoal.command", job.entrypoint),
        "started": job.started.isoformat(timespec="seconds") if job.started else None,
        "seconds": round((last - job.started).total_seconds(), 1) if job.started else None,
        "exit_code": job.exit_code,
    }


def status(jobs: Jobs, run: str | None) -> tuple[dict[str, Any], str]:
    """What runs on a cluster, or how far one run is: for --json, and for a person."""
    if run is not None:
        job = jobs.job(run)
        value = described(job) | {"last": _last_line(jobs.logs(run))}
        lines = [f"{key:<9}{value[key]}" for key in value if value[key] not in (None, "")]
        return value, "\n".join(lines)
    from cluster.cli import rollout
    from serve.run import endpoints

    target, versions = jobs.target, jobs.versions()
    there = reached(target)
    served = rollout.joined([vars(endpoint) for endpoint in endpoints(there)], there)
    runs = [described(job) for job in jobs.jobs()[:20]]
    value = {"cluster": {"name": target.name, "dashboard": target.address, **versions}, "runs": runs}
    lines = [f"cluster  {target.address}  Ray {versions['ray']}  Python {versions['python']}"]
    if served:
        rows = [[row["name"], row["task"], row["state"], row["replicas"], row["version"], row["url"]] for row in served]
        lines += ["", table(["served", "task", "state", "replicas", "version", "url"], rows)]
        lines += [f"roll-out  {row['name']}: {rollout.words(row['rollout'])}" for row in served if row["rollout"]]
    if runs:
        rows = [[row["run"], row["status"], row["user"], row["seconds"], (row["started"] or "")[:19]] for row in runs]
        lines += ["", table(["run", "status", "user", "seconds", "started"], rows)]
    return value | {"endpoints": served}, "\n".join(lines)


def logs(jobs: Jobs, run: str, *, count: int, follow: bool, as_json: bool) -> int:
    """Print the last `count` lines of a run, and with `follow` what comes, until it is over; the exit code then."""
    from cluster.cli import remote

    jobs.job(run)  # raises NotFound
    text = jobs.logs(run)
    shown = text.rstrip("\n").split("\n")[-count:] if count and text.strip() else []
    if not follow:
        for line in shown:
            click.echo(json.dumps({"run": run, "line": line}) if as_json else line)
        if as_json:
            click.echo(json.dumps({"run": run, "lines": len(shown)}))
        return 0
    # From the start of the first line that is shown; the rest comes by following.
    tail = "\n".join(shown)
    return remote.follow(jobs, run, as_json=as_json, skip=len(text) - len(tail) - text.endswith("\n"))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
