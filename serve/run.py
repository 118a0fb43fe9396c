"""Models up, changed and down, each alone: the others' replicas are not touched."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from cluster import tasks
from cluster.errors import NotFound, RunFailed
from cluster.progress import Progress, silent
from cluster.serving import GATEWAY, model_application
from cluster.spec import Spec
from serve.applications import Change, read

if TYPE_CHECKING:
    from cluster.connect import Cluster

POLL_S = 0.2


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
    }
    stage = f"serve {spec.name}"

    # The application, and beside it the gateway where none runs yet.
    with Change(cluster) as change:
        before = None if change.failed(spec.name) else change.before.get(spec.name)
        attempt = change.attempt(spec.name)
        wanted = model_application(spec, model_uri=model_uri, folder=str(folder.resolve()), attempt=attempt)
        change.applications[spec.name] = wanted
        if GATEWAY not in change.before or change.failed(GATEWAY):
            change.tell_gateway(change.models())
    try:
        progress(stage, 0, 3, "starting a replica")
        _wait_running(cluster, spec.name, wait_s, lambda note: progress(stage, 1, 3, note))
    except BaseException:
        _take_back(cluster, spec.name, wanted, before)
        raise

    # Only now the gateway tells of it.
    progress(stage, 2, 3, "telling the gateway")
    with Change(cluster) as change:
        change.tell_gateway({**change.models(), spec.name: described})
    _wait_gateway(cluster, spec.name, lambda model: model is not None and model["version"] == model_uri)
    progress(stage, 3, 3, "answering")
    return _endpoint(cluster, spec.name, read(cluster)[spec.name])


def remove(name: str, cluster: Cluster) -> None:
    """Stop serving a model, and return when its replicas are gone. Raises NotFound."""
    served = [endpoint.name for endpoint in endpoints(cluster)]
    if name not in served:
        raise NotFound(f"{name}: not served; {'these are: ' + ', '.join(served) if served else 'no model is'}")
    # First nobody is sent there any more, then it goes.
    with Change(cluster) as change:
        change.tell_gateway({other: model for other, model in change.models().items() if other != name})
    _wait_gateway(cluster, name, lambda model: model is None)
    with Change(cluster) as change:
        change.applications.pop(name, None)
    while name in read(cluster):
        time.sleep(POLL_S)


def endpoints(cluster: Cluster) -> list[Endpoint]:
    """Every model that is served or being started, by name."""
    found = read(cluster)
    return [_endpoint(cluster, name, found[name]) for name in sorted(found) if name != GATEWAY]


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
    end = time.monotonic() + wait_s
    message = ""
    while time.monotonic() < end:
        details = read(cluster).get(name)
        if details is None:
            raise RunFailed(f"{name}: was removed by someone else while it started")
        message = _message(details)
        if details["status"] == "RUNNING":
            return
        if details["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RunFailed(f"{name}: {message}")
        note(message[:200] or "loading the model")
        time.sleep(POLL_S)
    raise RunFailed(f"{name}: no replica answered within {wait_s:g} s: {message or 'it was still loading'}")


def _wait_gateway(cluster: Cluster, name: str, right: Callable[[Any], bool], wait_s: float = 120) -> None:
    """Until the gateway itself, asked over HTTP, says of a model what is to be said (None: nothing)."""
    end = time.monotonic() + wait_s
    said = ""
    while time.monotonic() < end:
        try:
            answer = httpx.get(f"{cluster.http_url}/models/{name}", timeout=5, trust_env=False)
            said = f"{answer.status_code} {answer.text[:200]}"
            ours = "json" in answer.headers.get("content-type", "") and answer.status_code in (200, 404)
            if ours and right(answer.json() if answer.status_code == 200 else None):
                return
        except httpx.HTTPError as error:
            said = str(error)
        gateway = read(cluster).get(GATEWAY)
        if gateway and gateway["status"] == "DEPLOY_FAILED":
            raise RunFailed(f"the gateway did not start: {_message(gateway)}")
        time.sleep(POLL_S)
    raise RunFailed(f"the gateway does not answer for {name} as it should after {wait_s:g} s: {said}")


def _endpoint(cluster: Cluster, name: str, details: dict[str, Any]) -> Endpoint:
    args = (details["deployed_app_config"] or {}).get("args", {})
    return Endpoint(
        name=name,
        url=f"{cluster.http_url}/models/{name}",
        version=args.get("version", ""),
        task=args.get("task", ""),
        state=details["status"],
        replicas=_running_replicas(details),
        message="" if details["status"] == "RUNNING" else _message(details),
    )


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
