"""A new version's start beside the old one, and what of a model is to be served instead or as before."""

from __future__ import annotations

import math
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import RunFailed
from cluster.progress import Progress, silent
from cluster.serving import model_application
from cluster.settings import tracking_uri
from cluster.spec import Spec
from serve import run, waiting
from serve.applications import Change
from serve.rollout import entry, settle
from serve.state import state

if TYPE_CHECKING:
    from cluster.connect import Cluster

POLL_S = 0.05


def deploy(
    spec: Spec, *, model_uri: str, folder: Path, cluster: Cluster, progress: Progress = silent, wait_s: float = 600
) -> run.Endpoint:
    """Serve a model as run.deploy does; with serve.rollout, and another version serving, beside that one.

    Of a version that is being tried already only what changed in the file is changed; another one takes its place.
    Raises what run.deploy does; RunFailed, too, where this version was rolled back before.
    """
    with Change(cluster) as change:
        model = change.models().get(spec.name)
        serving = spec.name in change.before and not change.failed(spec.name)
    live = entry.going_on(model)
    beside = spec.serve.rollout is not None and model is not None and serving and model["version"] != model_uri
    if not beside:
        if live is not None:
            settle.abort(spec.name, cluster, f"{model_uri} is to be served instead", progress)
        return run.deploy(
            spec, model_uri=model_uri, folder=folder, cluster=cluster, progress=progress, wait_s=wait_s
        )  # fmt: skip
    ended = entry.of(model)
    if live is not None and (live["version"] != model_uri or live["state"] != entry.RUNNING):
        if live["state"] == entry.RUNNING:
            settle.abort(spec.name, cluster, f"{model_uri} is to be tried instead", progress)
        else:
            settle.settle(spec.name, cluster, progress)  # what somebody else has begun to end
        return deploy(spec, model_uri=model_uri, folder=folder, cluster=cluster, progress=progress, wait_s=wait_s)
    if live is None and ended is not None and ended["version"] == model_uri and ended["state"] == entry.ROLLED_BACK:
        raise RunFailed(
            f"{spec.name}: {model_uri} was rolled back: {ended['reason']}; serve another version, or "
            f"`shoal rollout forget {spec.name}` and it is tried again"
        )
    _begin(spec, model_uri, folder, cluster, progress, wait_s)
    return run.find(spec.name, cluster)


def _begin(spec: Spec, model_uri: str, folder: Path, cluster: Cluster, progress: Progress, wait_s: float) -> None:
    assert spec.serve.rollout is not None
    name, beside = spec.name, spec.name + entry.NEXT
    stage = f"roll-out {name}"

    # The new version, as an application of its own.
    progress(stage, 0, 3, "starting a replica of the new version")
    with Change(cluster) as change:
        fresh = beside not in change.before or change.failed(beside)
        attempt = change.attempt(beside)
        wanted = _application(spec, model_uri, folder, beside, attempt)
        change.applications[beside] = wanted
    try:
        waiting.wait_running(cluster, beside, model_uri, wait_s, lambda note: progress(stage, 1, 3, note))
        _wait_up(beside, cluster)
    except BaseException:
        with Change(cluster) as change:
            if fresh and change.before.get(beside) == wanted:
                change.applications.pop(beside)
        raise

    # Only now clients get to it.
    progress(stage, 2, 3, "telling the gateway")
    with Change(cluster) as change:
        models = change.models()
        if name not in models:
            raise RunFailed(f"{name}: was removed by someone else while its new version started")
        model = {key: value for key, value in models[name].items() if key != "rollout"}
        found: dict[str, Any] = entry.going_on(models[name]) or {
            "id": secrets.token_hex(4),
            "application": beside,
            "version": model_uri,
            "previous": model["version"],
            "began": time.time(),
            "state": entry.RUNNING,
            "reason": "",
            "home": str(cluster.home),
            "tracking_uri": tracking_uri(),
        }
        told = run.described(spec, model_uri)
        whole = model_application(spec, model_uri=model_uri, folder=str(folder.resolve()))
        found = {**found, "told": told, "wanted": whole, "keys": spec.serve.rollout.model_dump()}
        change.tell_gateway({**models, name: {**model, "rollout": found}})
    told = {"id": found["id"], "keys": found["keys"]}
    settle.wait_all(name, cluster, lambda one: told.items() <= one.items(), "of the roll-out")
    progress(stage, 3, 3, f"{spec.serve.rollout.canary:.0%} of the clients, {spec.serve.rollout.shadow:.0%} shadowed")


def _application(spec: Spec, model_uri: str, folder: Path, name: str, attempt: int) -> dict[str, Any]:
    """The new version's own application: for its share of the load, and never without a replica."""
    assert spec.serve.rollout is not None
    serve, share = spec.serve, max(spec.serve.rollout.canary, spec.serve.rollout.shadow)
    least = max(1, math.ceil(serve.min_replicas * share))
    most = least if serve.min_replicas == serve.max_replicas else serve.max_replicas
    smaller = spec.model_copy(update={"serve": serve.model_copy(update={"min_replicas": least, "max_replicas": most})})
    wanted = model_application(smaller, model_uri=model_uri, folder=str(folder.resolve()), attempt=attempt)
    return {**wanted, "name": name, "route_prefix": f"/m/{name}"}


def _wait_up(application: str, cluster: Cluster, wait_s: float = 60) -> None:
    """Until a replica has told the Keeper that it takes requests: gateways hear of it before they are told of the
    roll-out. Raises RunFailed."""
    end = time.monotonic() + wait_s
    said = ""
    while time.monotonic() < end:
        told, said = state(cluster)
        if waiting.up(told, application):
            return
        time.sleep(POLL_S)
    raise RunFailed(f"{application}: no replica tells that it is up after {wait_s:g} s{': ' if said else ''}{said}")
