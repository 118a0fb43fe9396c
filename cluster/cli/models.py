"""`shoal models`: what the registry holds, where it comes from, and what is in force."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output, table
from cluster.errors import InputError, NotFound

if TYPE_CHECKING:
    from cluster.registry import Run, Version

_NAME = re.compile(r"^(models:/)?(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))?$")


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """The models that passed their gate: versions, where each comes from, and which is in force.

    \b
      shoal models                        all of them
      shoal models show reviews           the champion, from data to endpoint
      shoal models show reviews/3         or any version
      shoal models promote reviews 3      make version 3 the champion
      shoal models rollback reviews       back to the champion before

    A model's champion is what `shoal serve` and `shoal up` deploy next, and what models:/NAME@champion means. What
    is being served changes when one of them is run.
    """
    context.obj = as_json
    if context.invoked_subcommand is not None:
        return
    from cluster.registry import Registry

    models: dict[str, list[Version]] = {}
    for version in Registry().versions():
        models.setdefault(version.name, []).append(version)
    value = [_listed(name, versions) for name, versions in models.items()]
    rows = [
        [
            row["name"],
            len(row["versions"]),
            row["champion"] or "-",
            _short(row["metrics"]),
            row["task"],
            row["when"][:16],
        ]
        for row in value
    ]
    text = table(["model", "versions", "champion", "metrics", "task", "newest"], rows) if rows else _NONE
    with Output(as_json=as_json) as out:
        out.result(value, text)


@command.command()
@click.argument("name", metavar="NAME[@ALIAS|/VERSION]")
@as_json
@click.pass_context
def show(context: click.Context, name: str, as_json: bool) -> None:
    """Where a version comes from: data, base model, run, code, environment, metrics, and where it answers.

    \b
      shoal models show reviews            the champion
      shoal models show reviews@previous
      shoal models show reviews/2 --json
    """
    from cluster.registry import Registry

    match = _NAME.match(name)
    if match is None:
        raise InputError(f"{name!r} names no model; write NAME, NAME@ALIAS or NAME/VERSION, e.g. reviews@champion")
    registry = Registry()
    version = registry.version(match["name"], alias=match["alias"], version=match["version"])
    value = _lineage(version, _run_of(registry, version), _endpoint(version.uri))
    with Output(as_json=as_json or context.obj) as out:
        out.result(value, _told(value))


@command.command()
@click.argument("name")
@click.argument("version")
@as_json
@click.pass_context
def promote(context: click.Context, name: str, version: str, as_json: bool) -> None:
    """Make VERSION the champion; the champion until now stays as `previous`.

    \b
      shoal models promote reviews 3
      shoal up reviews.yaml                and serve it
    """
    from cluster.registry import Registry

    _changed(Registry().promote(name, version), as_json or context.obj)


@command.command()
@click.argument("name")
@as_json
@click.pass_context
def rollback(context: click.Context, name: str, as_json: bool) -> None:
    """Back to the champion before: champion and previous change places.

    \b
      shoal models rollback reviews
      shoal up reviews.yaml                and serve it
    """
    from cluster.registry import Registry

    _changed(Registry().rollback(name), as_json or context.obj)


_NONE = "no models yet; `shoal up FILE` makes one, `shoal init TASK` writes a file to start from"


def _listed(name: str, versions: list[Version]) -> dict[str, Any]:
    """A row of the list; `versions` come newest first."""
    champion = next((version for version in versions if "champion" in version.aliases), None)
    previous = next((version for version in versions if "previous" in version.aliases), None)
    shown = champion or versions[0]
    return {
        "name": name,
        "versions": [version.version for version in versions],
        "champion": champion.version if champion else None,
        "previous": previous.version if previous else None,
        "metrics": shown.metrics,
        "task": shown.tags.get("shoal.task", ""),
        "when": versions[0].created.isoformat(timespec="seconds"),
    }


def _changed(version: Version, as_json: bool) -> None:
    value = {"name": version.name, "champion": version.version, "version": version.uri, "metrics": version.metrics}
    text = f"{version.uri} is the champion of {version.name}; `shoal serve` or `shoal up` deploys it"
    with Output(as_json=as_json) as out:
        out.result(value, text)


def _run_of(registry: Any, version: Version) -> Run | None:
    """The run behind a version; None where it was deleted, or the version was registered without one."""
    try:
        return registry.run(version.run_id) if version.run_id else None
    except NotFound:
        return None


def _endpoint(uri: str) -> str | None:
    """Where a version answers; None where nothing serves it, or the gateway does not say within 2 seconds."""
    import httpx

    from cluster import connect
    from cluster.asked import ask

    cluster = connect.running()
    if cluster is None:
        return None
    try:
        served = ask(cluster, "GET", "/models", timeout_s=2).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    return next((model["url"] for model in served if model.get("version") == uri), None)


def _lineage(version: Version, run: Run | None, endpoint: str | None) -> dict[str, Any]:
    tags = {**(run.tags if run else {}), **version.tags}
    # Shoal's tags of the environment are the packages it names; what else it notes has a place of its own here.
    named = ("python", "platform", "torch", "ray", "transformers", "datasets", "scikit-learn", "mlflow")
    return {
        "name": version.name,
        "version": version.uri,
        "aliases": list(version.aliases),
        "created": version.created.isoformat(timespec="seconds"),
        "task": tags.get("shoal.task", ""),
        "data": {"digest": tags.get("shoal.data_digest", ""), "files": list(run.data) if run else []},
        "base_model": tags.get("shoal.base_model", ""),
        "run": {
            "id": version.run_id,
            "status": run.status if run else "not there any more",
            "started": run.started.isoformat(timespec="seconds") if run else None,
            "seconds": round((run.ended - run.started).total_seconds(), 1) if run and run.ended else None,
            "user": tags.get("mlflow.user", ""),
        },
        "sweep": {key: tags.get(f"shoal.{key}", "") for key in ("sweep", "trial", "tuned")},
        "code": {"version": tags.get("shoal.code", ""), "dirty": tags.get("shoal.code_dirty") == "true"},
        "environment": {name: tags[f"shoal.{name}"] for name in named if f"shoal.{name}" in tags},
        "parameters": run.params if run else {},
        "metrics": version.metrics,
        "gate": {"state": tags.get("shoal.gate", ""), "text": tags.get("shoal.gate_text", "")},
        "endpoint": endpoint,
    }


def _told(value: dict[str, Any]) -> str:
    run, code, gate, sweep = value["run"], value["code"], value["gate"], value["sweep"]
    files = [
        [item["split"], item["name"], f"{item['rows']} rows", f"sha256 {item['sha256'][:12]}"]
        for item in value["data"]["files"]
    ]
    took = f", {run['seconds']:g} s" if run["seconds"] is not None else ""
    lines = [
        ["version", f"{value['version']}  {' '.join(value['aliases'])}".rstrip()],
        ["task", value["task"]],
        ["data", f"digest {value['data']['digest'][:12]}"],
        *[["", "  ".join(str(cell) for cell in file)] for file in files],
        ["base model", value["base_model"]],
        ["run", f"{run['id']}  {run['status']}, {run['started'] or ''}{took}, by {run['user'] or 'unknown'}"],
        *([["sweep", f"{sweep['sweep']}, trial {sweep['trial']}: {sweep['tuned']}"]] if sweep["sweep"] else []),
        ["code", f"{code['version']}{' with changes not committed' if code['dirty'] else ''}"],
        ["environment", ", ".join(f"{key} {text}" for key, text in value["environment"].items())],
        *[
            ["parameters" if not i else "", f"{key} = {text}"]
            for i, (key, text) in enumerate(value["parameters"].items())
        ],
        ["metrics", _short(value["metrics"])],
        ["gate", f"{gate['state'] or 'none'}{': ' if gate['text'] else ''}{gate['text']}"],
        ["created", value["created"]],
        ["endpoint", value["endpoint"] or f"not served; `shoal serve` or `shoal up` with the file of {value['name']}"],
    ]
    return "\n".join(f"{key:<12} {text}".rstrip() for key, text in lines)


def _short(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
