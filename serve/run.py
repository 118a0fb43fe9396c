"""Models up, changed and down, each alone: the others' replicas are not touched."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import engine, scaling, tasks
from cluster.errors import NotFound
from cluster.progress import Progress, silent
from cluster.serving import GATEWAY, model_application
from cluster.spec import Spec
from serve import language, sharing
from serve.applications import Change, read
from serve.rollout.entry import INNER, NEXT, of
from serve.waiting import (
    POLL_S,
    entered,
    message_of,
    running_replicas,
    wait_adapters,
    wait_gateway,
    wait_running,
    wait_tried,
)

if TYPE_CHECKING:
    from cluster.connect import Cluster


@dataclass(frozen=True)
class Endpoint:
    """A model that is served. `state` is Serve's: RUNNING, DEPLOYING, DEPLOY_FAILED, UNHEALTHY or DELETING; `replicas`
    counts those that run; `message` says what is wrong, where something is."""

    name: str
    url: str
    version: str
    task: str
    state: str = "RUNNING"
    replicas: int = 0
    message: str = ""
    rollout: dict[str, Any] | None = None
    """The new version beside this one, or how its roll-out ended; see serve.rollout.entry."""


def deploy(
    spec: Spec,
    *,
    model_uri: str,
    folder: Path,
    cluster: Cluster,
    progress: Progress = silent,
    wait_s: float = 600,
) -> Endpoint:
    """Serve the model in `folder` as `spec.name`, and return once the gateway answers for it.

    The same `model_uri` and serve section again changes nothing. A new version starts beside the old one and takes
    its place when it answers. Raises InputError where the task cannot be served, RunFailed with the replica's own
    message where the model does not start within `wait_s` seconds; what was served before then goes on.
    """
    about = described(spec, model_uri)
    stage = f"serve {spec.name}"
    found = language.source(spec, model_uri=model_uri, folder=folder.resolve()) if spec.task == engine.TASK else None

    # The application, and beside it the gateway where none runs yet.
    with Change(cluster) as change:
        if found is not None:
            place = language.place(spec, found, change, about)
        elif spec.serve.shared:
            place = sharing.place(spec, change, about, model_uri=model_uri, folder=folder.resolve())
        else:
            attempt = change.attempt(spec.name)
            wanted = model_application(spec, model_uri=model_uri, folder=str(folder.resolve()), attempt=attempt)
            place = language.Place(spec.name, spec.name, wanted, {spec.name: about})
        name = place.application
        before = None if change.failed(name) else change.before.get(name)
        change.applications[name] = place.wanted
        if GATEWAY not in change.before or change.failed(GATEWAY):
            change.tell_gateway(change.models())
    told = {key: value for key, value in place.told.items() if value is not None}
    length = 0
    try:
        progress(stage, 0, 3, "starting a replica" if before is None else "changing what is served")
        version = place.wanted["args"].get("version")
        wait_running(cluster, name, version, wait_s, lambda note: progress(stage, 1, 3, note))
        cluster = entered(cluster)
        if found is not None:
            length = wait_adapters(cluster, name, place.name, place.tag)
        if spec.serve.shared:
            wait_tried(cluster, name, place.name, place.tag, wait_s)
    except BaseException:
        if spec.serve.shared:
            sharing.take_out(cluster, place, before)
        else:
            _take_back(cluster, name, place.wanted, before)
        raise

    # Only now the gateway tells of it.
    progress(stage, 2, 3, "telling the gateway")
    with Change(cluster) as change:
        models = {key: value for key, value in change.models().items() if key not in place.told}
        if found is not None:
            known = change.models()
            told = {key: language.dated(one, known.get(key), max_model_len=length) for key, one in told.items()}
        change.tell_gateway({**models, **told})
    wait_gateway(cluster, place.name, model_uri, name)
    if found is None:
        # It may have been served elsewhere before: by itself, or in other copies.
        with Change(cluster) as change:
            sharing.drop(change.applications, place.name, but=name)
            if name != place.name:
                change.applications.pop(place.name, None)
    progress(stage, 3, 3, "answering")
    return find(place.name, cluster)


def described(spec: Spec, model_uri: str) -> dict[str, Any]:
    """What the gateway is told of a model that has an application of its own. Raises InputError where its task cannot
    be served."""
    row = tasks.servable(spec)
    return {
        "task": row.name,
        "version": model_uri,
        "request": row.request,
        "response": row.response,
        "timeout_s": spec.serve.request_timeout_s,
        "idempotent": spec.serve.idempotent,
        **({"private": True} if spec.serve.private else {}),
        **scaling.held(spec),
    }


def find(name: str, cluster: Cluster) -> Endpoint:
    """An endpoint by name, or by the second half of other:name where that is the only one. Raises NotFound."""
    served = {endpoint.name: endpoint for endpoint in endpoints(cluster)}
    halves = [endpoint for key, endpoint in served.items() if key.partition(":")[2] == name]
    if name in served:
        return served[name]
    if len(halves) == 1:
        return halves[0]
    raise NotFound(f"{name}: not served; {'these are: ' + ', '.join(served) if served else 'no model is'}")


def remove(name: str, cluster: Cluster) -> None:
    """Stop serving a model, and return when its replicas are gone, or an adapter is off its engine. Raises NotFound."""
    name = find(name, cluster).name
    application, _, adapter = name.partition(":")
    # First nobody is sent there any more, then it goes.
    with Change(cluster) as change:
        shares = next((key for key, one in change.before.items() if name in sharing.models(one)), "")
        own = {key for key, model in change.models().items() if _of(key, model) == application}
        gone = {name} if adapter or shares else own
        change.tell_gateway({key: model for key, model in change.models().items() if key not in gone})
    for key in gone:
        wait_gateway(cluster, key, None)
    with Change(cluster) as change:
        if shares:
            sharing.drop(change.applications, name)
        elif not adapter:
            change.applications.pop(application, None)
            change.applications.pop(application + NEXT, None)
        elif application in change.before:
            change.applications[application] = language.without(change.before[application], name)
        left = shares in change.applications
    if adapter:
        wait_adapters(cluster, application, name, None)
    elif left:
        wait_tried(cluster, shares, name, None, wait_s=120)
    gone = {shares} if shares else {application, application + NEXT}
    while not adapter and not left and gone & set(read(cluster)):
        time.sleep(POLL_S)


def endpoints(cluster: Cluster) -> list[Endpoint]:
    """Every model that is served or being started, by name."""
    found = read(cluster)
    names = [name for name in found if name != GATEWAY and not name.endswith(NEXT)]
    listed = [one for name in names for one in _endpoints(cluster, name, found[name])]
    rollouts = _rollouts(found.get(GATEWAY))
    listed = [replace(one, rollout=rollouts[one.name]) if one.name in rollouts else one for one in listed]
    return sorted(listed, key=lambda one: one.name)


def _take_back(cluster: Cluster, name: str, wanted: dict[str, Any], before: dict[str, Any] | None) -> None:
    """After a failure: the configuration says what still answers, and where nothing does nothing is left behind."""
    with Change(cluster) as change:
        if change.before.get(name) != wanted:
            return  # another process has changed it since
        if before is not None:
            change.applications[name] = before
        elif not running_replicas(change.found[name]):
            change.applications.pop(name)


def _endpoints(cluster: Cluster, name: str, details: dict[str, Any]) -> list[Endpoint]:
    """An application's endpoint, and those of the adapters of other files on its engine."""
    config = details["deployed_app_config"] or {}
    args = config.get("args", {})
    adapters = language.loaded(config)
    versions = {name: args.get("version", ""), **{key: adapter["version"] for key, adapter in adapters.items()}}
    shared = sharing.models(config)
    if shared:
        versions = {key: model["version"] for key, model in shared.items()}
    return [
        Endpoint(
            name=key,
            url=f"{cluster.public_url}/models/{key}",
            version=version,
            task=shared[key]["task"] if shared else args.get("task", ""),
            state=details["status"],
            replicas=running_replicas(details),
            message="" if details["status"] == "RUNNING" else message_of(details),
        )
        for key, version in versions.items()
    ]


def _rollouts(gateway: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The roll-outs in the gateway's configuration, by model."""
    config = (gateway or {}).get("deployed_app_config") or {"deployments": [{}]}
    models = (config["deployments"][0].get("user_config") or {}).get("models", {})
    found = {name: of(model) for name, model in models.items()}
    return {name: {key: one[key] for key in one if key not in INNER} for name, one in found.items() if one is not None}


def _of(key: str, model: dict[str, Any]) -> str:
    """The application that answers for one of the gateway's names."""
    return model.get("application", key)
