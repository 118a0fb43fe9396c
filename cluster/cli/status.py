"""`shoal status`."""

from __future__ import annotations

from typing import Any

import click

from cluster.cli.options import as_json, on
from cluster.cli.output import Output, table


@click.command()
@click.argument("run", required=False)
@on
@as_json
def command(run: str | None, on: str | None, as_json: bool) -> None:
    """What is running: the cluster, what is served, and the newest runs with how far they are.

    With --on it tells of that cluster, and with RUN of one run there.

    \b
      shoal status
      shoal status --json
      shoal status --on prod
      shoal status train-reviews-20261124-150312-ab12 --on prod
    """
    from cluster.submit.target import find

    if find(on) is not None or run is not None:
        from cluster.cli import jobs

        with Output(as_json=as_json) as out:
            return out.result(*jobs.status(jobs.on_which(on, run or "status"), run))
    from cluster import connect
    from cluster.cli import rollout, scaling
    from cluster.errors import ClusterGone, InputError
    from cluster.registry import Registry
    from cluster.settings import home
    from serve.run import endpoints

    cluster = connect.running()
    served: list[dict[str, Any]] = []
    rollouts: list[str] = []
    scaled: list[str] = []
    trouble = ""
    if cluster is not None:
        try:
            served = rollout.joined([vars(endpoint) for endpoint in endpoints(cluster)], cluster)
            rollouts = [f"roll-out  {row['name']}: {rollout.words(row['rollout'])}" for row in served if row["rollout"]]
            scaled = scaling.joined(served, cluster)
        except (ClusterGone, InputError) as error:
            trouble = str(error)
    runs = [_run(run) for run in Registry().runs(limit=8)] if any(home().glob("mlflow.db")) else []
    value = {
        "home": str(home()),
        "cluster": {"address": cluster.address, "dashboard": cluster.dashboard_url} if cluster else None,
        "endpoints": served,
        "runs": runs,
    }
    lines = [f"home     {home()}"]
    lines.append(
        f"cluster  {cluster.address}  dashboard {cluster.dashboard_url}" if cluster else "cluster  not running"
    )
    if trouble:
        lines.append(f"trouble  {trouble}")
    if served:
        rows = [[row["name"], row["task"], row["state"], row["replicas"], row["version"], row["url"]] for row in served]
        lines += ["", table(["served", "task", "state", "replicas", "version", "url"], rows)]
        lines += rollouts + scaled
    if runs:
        rows = [[row["name"], row["run"][:12], row["status"], row["step"], row["started"]] for row in runs]
        lines += ["", table(["run of", "id", "status", "step", "started"], rows)]
    with Output(as_json=as_json) as out:
        return out.result(value, "\n".join(lines))


def _run(run: Any) -> dict[str, Any]:
    step, total = run.tags.get("shoal.step"), run.tags.get("shoal.total_steps")
    return {
        "name": run.name,
        "run": run.id,
        "status": run.status,
        "step": f"{step}/{total}" if step and total else "",
        "started": str(run.started)[:19],
    }
