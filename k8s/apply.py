"""Manifests onto a cluster and off it again, and what becomes of them there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cluster.errors import RunFailed
from cluster.progress import Progress, silent
from k8s import state
from k8s.api import Api
from k8s.check import check
from k8s.names import CORE, INSTANCE, MANAGED_BY, MANAGER

POLL_S = 1.0
READY_S = 1800.0  # the longest a service may take: images, nodes and models come first
ALONE_S = 30.0  # after so long without a word it is worth asking whether KubeRay runs
GONE_S = 120.0
_OPERATOR = "kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator"
COMPONENT = "app.kubernetes.io/component"
Manifest = dict[str, Any]


def apply(
    api: Api,
    manifests: Sequence[Manifest],
    *,
    progress: Progress = silent,
    ready_s: float = READY_S,
    poll_s: float = POLL_S,
) -> list[Manifest]:
    """Apply all of it, jobs first: a service is applied when they have succeeded, as `shoal up` does. Returns what then
    stands on the cluster; the same again changes nothing.

    Before anything is changed all is checked against the cluster's own CRDs, and by the API server in a dry run. Raises
    InputError, RunFailed (a job failed, a field has another owner, no permission) or ClusterGone.
    """
    check(manifests, api.crds(one["kind"] for one in manifests))
    for manifest in manifests:
        api.apply(manifest, dry_run=True)

    made: list[Manifest] = []
    jobs = [one for one in manifests if _component(one) != "serve"]
    service = [one for one in manifests if _component(one) == "serve"]
    made += [_put(api, manifest) for manifest in jobs]
    for manifest in jobs:
        if manifest["kind"] == "RayJob":
            _wait(api, manifest, progress, float("inf"), poll_s)
    for manifest in service:
        if manifest["kind"] == "RayService":
            # Files that share a service are named together each time: one that is not is served no more.
            before = api.get("RayService", manifest["metadata"]["name"])
            if before and (gone := set(state.wanted(before)) - set(state.wanted(manifest))):
                progress("no longer served", 0, 0, ", ".join(sorted(gone)))
    made += [_put(api, manifest) for manifest in service]
    for manifest in service:
        if manifest["kind"] == "RayService":
            _wait(api, manifest, progress, ready_s, poll_s)
    return made


def _put(api: Api, manifest: Manifest) -> Manifest:
    """Apply one manifest, unless it stands there as it would then. (Older API servers write a custom resource anew each
    time it is applied, if only to note when.)"""
    before = api.get(manifest["kind"], manifest["metadata"]["name"])
    if before is not None and _content(api.apply(manifest, dry_run=True)) == _content(before):
        return before
    return api.apply(manifest)


def _content(resource: Manifest) -> Manifest:
    """A resource without what every write of it changes; whose its fields are belongs to it."""
    metadata = {key: value for key, value in resource["metadata"].items() if key != "resourceVersion"}
    owners = [{key: value for key, value in one.items() if key != "time"} for one in metadata["managedFields"]]
    return {**resource, "metadata": {**metadata, "managedFields": owners}}


def _wait(api: Api, manifest: Manifest, progress: Progress, longest_s: float, poll_s: float) -> None:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    began = time.monotonic()
    while True:
        found = api.get(kind, name)
        if found is None:
            raise RunFailed(f"{kind} {name}: was deleted by someone else while it was waited for")
        now = state.read(found)
        if now.outcome == "done":
            progress(name, 1, 1, now.word)
            return
        if now.outcome == "failed":
            raise RunFailed(f"{kind} {name}: {now.word}: {now.message or 'no reason given'}; {_look(kind, now, api)}")
        waited = time.monotonic() - began
        if waited > longest_s:
            said = f": {now.message}" if now.message else ""
            raise RunFailed(
                f"{kind} {name}: not ready within {longest_s:g} s: {now.word}{said}; {_look(kind, now, api)}"
            )
        note = f"{now.word}{f', {now.message}' if now.message else ''}"
        if not now.seen and waited > ALONE_S:
            note = f"KubeRay's operator says nothing; does it run? {_OPERATOR}"
        progress(name, 0, 0, note)
        time.sleep(poll_s)


def status(api: Api, manifests: Sequence[Manifest]) -> list[dict[str, Any]]:
    """What stands on the cluster of what is rendered: kind, name, state, message and pods of each; nothing waits."""
    rows: list[dict[str, Any]] = []
    for kind, selector in selectors(manifests):
        if kind in CORE:
            continue
        for found in api.list(kind, selector):
            now = state.read({**found, "kind": kind})
            pods = api.list("Pod", f"ray.io/cluster={now.cluster}") if now.cluster else []
            rows.append(
                {
                    "kind": kind,
                    "name": found["metadata"]["name"],
                    "state": now.word,
                    "message": now.message,
                    "pods": [_pod(pod) for pod in pods],
                }
            )
    return rows


def delete(
    api: Api, manifests: Sequence[Manifest], *, progress: Progress = silent, gone_s: float = GONE_S
) -> list[tuple[str, str]]:
    """Delete what was applied for these files, jobs of earlier versions of them included, and wait until it is gone.
    Returns kind and name of each. Raises RunFailed where something stays, naming what holds it."""
    removed: list[tuple[str, str]] = []
    # What serves goes first, and what pods read last.
    order = {"RayService": 0, "Service": 1, "RayJob": 2, "ConfigMap": 3}
    for kind, selector in sorted(selectors(manifests), key=lambda pair: order[pair[0]]):
        for found in api.list(kind, selector):
            name = found["metadata"]["name"]
            api.delete(kind, name)
            removed.append((kind, name))
            progress("delete", len(removed), 0, f"{kind} {name}")
    end = time.monotonic() + gone_s
    left = list(removed)
    while left:
        left = [one for one in left if api.get(*one) is not None]
        if left and time.monotonic() > end:
            held = (api.get(*left[0]) or {"metadata": {}})["metadata"].get("finalizers") or ["nothing known"]
            raise RunFailed(
                f"{left[0][0]} {left[0][1]}: still there after {gone_s:g} s, held by {', '.join(held)}; does KubeRay's "
                "operator run?"
            )
        if left:
            time.sleep(0.2)
    return removed


def selectors(manifests: Sequence[Manifest]) -> list[tuple[str, str]]:
    """Kind and label selector of everything that was applied under what these manifests belong to, each once."""
    pairs = []
    for one in manifests:
        labels = one["metadata"]["labels"]
        marks = {MANAGED_BY: MANAGER, INSTANCE: labels[INSTANCE], COMPONENT: labels[COMPONENT]}
        pairs.append((one["kind"], ",".join(f"{key}={value}" for key, value in marks.items())))
    return list(dict.fromkeys(pairs))


def _component(manifest: Manifest) -> str:
    return manifest["metadata"]["labels"][COMPONENT]


def _pod(pod: dict[str, Any]) -> dict[str, Any]:
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    waiting = [one["state"]["waiting"].get("reason", "") for one in containers if one.get("state", {}).get("waiting")]
    return {
        "name": pod["metadata"]["name"],
        "phase": status.get("phase", "Unknown"),
        "ready": f"{sum(bool(one.get('ready')) for one in containers)}/{len(pod['spec']['containers'])}",
        "message": ", ".join(filter(None, waiting)),
    }


def _look(kind: str, now: state.State, api: Api) -> str:
    if kind == "RayJob" or not now.cluster:
        return f"kubectl -n {api.namespace} describe {kind.lower()} says more, shoal k8s status its pods"
    return f"kubectl -n {api.namespace} logs -l ray.io/cluster={now.cluster},ray.io/node-type=head says more"
