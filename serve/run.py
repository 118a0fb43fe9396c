"""Models up, changed and down, each alone: the others' replicas are not touched."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster import attached, engine, tasks
from cluster.errors import InputError, NotFound, RunFailed
from cluster.progress import Progress, silent
from cluster.serving import GATEWAY, model_application
from cluster.spec import Spec
from serve import language
from serve.applications import Change, read
from serve.state import state

if TYPE_CHECKING:
    from cluster.connect import Cluster

POLL_S = 0.2
FRESH_S = 3.0  # a gateway that told nothing for longer has ended


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
    row = tasks.servable(spec)
    described = {
        "task": row.name,
        "version": model_uri,
        "request": row.request,
        "response": row.response,
        "timeout_s": spec.serve.request_timeout_s,
        "idempotent": spec.serve.idempotent,
        **({"private": True} if spec.serve.private else {}),
    }
    stage = f"serve {spec.name}"
    found = language.source(spec, model_uri=model_uri, folder=folder.resolve()) if row.name == engine.TASK else None

    # The application, and beside it the gateway where none runs yet.
    with Change(cluster) as change:
        if found is not None:
            place = language.place(spec, found, change, described)
        else:
            attempt = change.attempt(spec.name)
            wanted = model_application(spec, model_uri=model_uri, folder=str(folder.resolve()), attempt=attempt)
            place = language.Place(spec.name, spec.name, wanted, {spec.name: described})
        name = place.application
        before = None if change.failed(name) else change.before.get(name)
        change.applications[name] = place.wanted
        if GATEWAY not in change.before or change.failed(GATEWAY):
            change.tell_gateway(change.models())
    told = {key: value for key, value in place.told.items() if value is not None}
    length = 0
    try:
        progress(stage, 0, 3, "starting a replica" if before is None else "changing what is served")
        _wait_running(cluster, name, wait_s, lambda note: progress(stage, 1, 3, note))
        cluster = _entered(cluster)
        if found is not None:
            length = _wait_adapters(cluster, name, place.name, place.tag)
    except BaseException:
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
    _wait_gateway(cluster, place.name, lambda version: version == model_uri)
    progress(stage, 3, 3, "answering")
    return find(place.name, cluster)


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
        gone = {name} if adapter else {key for key, model in change.models().items() if _of(key, model) == application}
        change.tell_gateway({key: model for key, model in change.models().items() if key not in gone})
    for key in gone:
        _wait_gateway(cluster, key, lambda version: version is None)
    with Change(cluster) as change:
        if not adapter:
            change.applications.pop(application, None)
        elif application in change.before:
            change.applications[application] = language.without(change.before[application], name)
    if adapter:
        _wait_adapters(cluster, application, name, None)
    while not adapter and application in read(cluster):
        time.sleep(POLL_S)


def endpoints(cluster: Cluster) -> list[Endpoint]:
    """Every model that is served or being started, by name."""
    found = read(cluster)
    return [one for name in sorted(found) if name != GATEWAY for one in _endpoints(cluster, name, found[name])]


def _take_back(cluster: Cluster, name: str, wanted: dict[str, Any], before: dict[str, Any] | None) -> None:
    """After a failure: the configuration says what still answers, and where nothing does nothing is left behind."""
    with Change(cluster) as change:
        if change.before.get(name) != wanted:
            return  # another process has changed it since
        if before is not None:
            change.applications[name] = before
        elif not _running_replicas(change.found[name]):
            change.applications.pop(name)


def _wait_running(cluster: Cluster, name: str, wait_s: float, note: Callable[[str], None]) -> None:
    began = time.monotonic()
    message = ""
    while (spent := time.monotonic() - began) < wait_s:
        details = read(cluster).get(name)
        if details is None:
            raise RunFailed(f"{name}: was removed by someone else while it started")
        message = _message(details)
        if details["status"] == "RUNNING":
            return
        if details["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RunFailed(f"{name}: {message}")
        note(message[:200] or f"loading the model, {spent:.0f} s")
        time.sleep(POLL_S)
    raise RunFailed(f"{name}: no replica answered within {wait_s:g} s: {message or 'it was still loading'}")


def _wait_adapters(cluster: Cluster, application: str, name: str, tag: str | None, wait_s: float = 120) -> int:
    """Until the engine's replicas say that they have an adapter of this tag ("": that `name` is the model itself;
    None: that it is gone). Returns how many tokens the engine takes. Raises InputError with what a replica says."""
    end = time.monotonic() + wait_s
    said = ""
    while time.monotonic() < end:
        told, said = state(cluster)
        facts = [one["facts"] for one in up(told, application)]
        for one in facts:
            if tag and name in one["faults"]:
                raise InputError(one["faults"][name])
        if facts and all(one["adapters"].get(name, "") == (tag or "") for one in facts):
            running = _running_replicas(read(cluster)[application])
            if len(facts) >= running:
                return facts[0]["max_model_len"]
        said = said or f"replicas say {[one['adapters'] for one in facts]}"
        time.sleep(POLL_S / 4)
    raise RunFailed(f"{application}: the adapter {name} is not loaded as it should be after {wait_s:g} s: {said}")


def up(told: dict[str, Any] | None, application: str) -> list[dict[str, Any]]:
    """The replicas of an application that take requests, of what `state` told."""
    replicas = told["replicas"] if told is not None else []
    return [one for one in replicas if one["application"] == application and one["state"] == "up"]


def _entered(cluster: Cluster, wait_s: float = 120) -> Cluster:
    """The cluster with the URL of a gateway that runs: which of several hosts have one is Serve's choice."""
    if urlsplit(cluster.http_url).hostname in ("127.0.0.1", "::1"):
        return cluster
    end = time.monotonic() + wait_s
    while (gateway := read(cluster).get(GATEWAY)) and gateway["status"] != "RUNNING" and time.monotonic() < end:
        if gateway["status"] == "DEPLOY_FAILED":
            raise RunFailed(f"the gateway did not start: {_message(gateway)}")
        time.sleep(POLL_S)
    return replace(cluster, http_url=attached.entrance(cluster.dashboard_url, cluster.token).url)


def _wait_gateway(cluster: Cluster, name: str, right: Callable[[str | None], bool], wait_s: float = 120) -> None:
    """Until every gateway says of a model's version what is to be said (None: nothing), and whoever has to be up is."""
    end = time.monotonic() + wait_s
    said = ""
    while time.monotonic() < end:
        told, said = state(cluster)
        if told is not None:
            known = [one["models"].get(name) for one in told["gateways"].values() if one["heard_s"] < FRESH_S]
            if known and all(right(version) for version in known):
                return
            said = f"gateways know {known}"
        gateway = read(cluster).get(GATEWAY)
        if gateway and gateway["status"] == "DEPLOY_FAILED":
            raise RunFailed(f"the gateway did not start: {_message(gateway)}")
        time.sleep(POLL_S / 4)
    raise RunFailed(f"the gateway does not answer for {name} as it should after {wait_s:g} s: {said}")


def _endpoints(cluster: Cluster, name: str, details: dict[str, Any]) -> list[Endpoint]:
    """An application's endpoint, and those of the adapters of other files on its engine."""
    config = details["deployed_app_config"] or {}
    args = config.get("args", {})
    adapters = language.loaded(config)
    versions = {name: args.get("version", ""), **{key: adapter["version"] for key, adapter in adapters.items()}}
    return [
        Endpoint(
            name=key,
            url=f"{cluster.http_url}/models/{key}",
            version=version,
            task=args.get("task", ""),
            state=details["status"],
            replicas=_running_replicas(details),
            message="" if details["status"] == "RUNNING" else _message(details),
        )
        for key, version in versions.items()
    ]


def _of(key: str, model: dict[str, Any]) -> str:
    """The application that answers for one of the gateway's names."""
    return model.get("application", key)


def _running_replicas(details: dict[str, Any]) -> int:
    return sum(
        replica["state"] == "RUNNING"
        for deployment in details["deployments"].values()
        for replica in deployment["replicas"]
    )


def _message(details: dict[str, Any]) -> str:
    """Why an application is not running: what its replica raised, if it said anything."""
    texts = [details["message"], *(deployment["message"] for deployment in details["deployments"].values())]
    for text in texts:
        if found := list(_OURS.finditer(text)):
            return found[-1]["message"].strip()
    # Serve's own text is a traceback where something of others was raised: its last line says what.
    return next((text.strip().splitlines()[-1] for text in reversed(texts) if text.strip()), "")


_OURS = re.compile(r"cluster\.errors\.\w+: (?P<message>.*?)(?=\n\n|\nThe above|\nDuring handling|\Z)", re.DOTALL)
