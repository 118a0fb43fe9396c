"""What KubeRay says of a RayJob or a RayService, in a few words. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import yaml

Outcome = Literal["waiting", "done", "failed"]


@dataclass(frozen=True)
class State:
    """`word` is KubeRay's own, `message` what is wrong or awaited, `cluster` the RayCluster at work; `seen` is False as
    long as no operator has looked at it."""

    outcome: Outcome
    word: str
    message: str = ""
    cluster: str = ""
    seen: bool = True


def read(resource: dict[str, Any]) -> State:
    """The state of a RayJob or RayService, as an API server gives it."""
    return _job(resource) if resource["kind"] == "RayJob" else _service(resource)


def _job(resource: dict[str, Any]) -> State:
    status = resource.get("status") or {}
    deployment, job = status.get("jobDeploymentStatus") or "", status.get("jobStatus") or ""
    message = " ".join(f"{status.get('reason') or ''} {status.get('message') or ''}".split())[:500]
    cluster = status.get("rayClusterName") or ""
    outcome: Outcome = "waiting"
    if deployment == "Complete":
        outcome = "done" if job == "SUCCEEDED" else "failed"
    elif deployment in ("Failed", "ValidationFailed"):
        outcome = "failed"
    word = f"{deployment or 'Pending'}{f' ({job})' if job else ''}"
    return State(outcome, word, message, cluster, bool(status))


def _service(resource: dict[str, Any]) -> State:
    """Done is a service that is ready, with every application of its configuration running on the active cluster."""
    status = resource.get("status") or {}
    active, pending = status.get("activeServiceStatus") or {}, status.get("pendingServiceStatus") or {}
    cluster = active.get("rayClusterName") or pending.get("rayClusterName") or ""
    conditions = {one["type"]: one for one in status.get("conditions", ())}
    ready = conditions.get("Ready", {}).get("status") == "True"
    upgrading = conditions.get("UpgradeInProgress", {}).get("status") == "True"
    word = "Upgrading" if upgrading else "Ready" if ready else status.get("serviceStatus") or "Pending"
    if status.get("observedGeneration") != resource["metadata"].get("generation"):
        return State("waiting", word, "KubeRay has not looked at this version yet", cluster, bool(status))
    applications = (pending if upgrading else active).get("applicationStatuses") or {}
    for name, one in sorted(applications.items()):
        if one.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
            text = (one.get("message") or "").strip().splitlines() or ["no reason given"]
            outcome: Outcome = "failed" if one["status"] == "DEPLOY_FAILED" else "waiting"
            return State(outcome, word, f"{name} is {one['status']}: {text[-1][:300]}", cluster)
    failed = conditions.get("Failed", {})
    if failed.get("status") == "True":
        return State("failed", "Failed", f"{failed.get('reason', '')} {failed.get('message', '')}".strip(), cluster)
    missing = [name for name in wanted(resource) if applications.get(name, {}).get("status") != "RUNNING"]
    if ready and not upgrading and not missing:
        return State("done", word, "", cluster)
    awaited = f"waiting for {', '.join(missing)}" if ready and missing else ""
    message = awaited or (conditions.get("Ready", {}).get("message") or "")
    return State("waiting", word, message[:300], cluster, bool(status))


def wanted(service: dict[str, Any]) -> list[str]:
    """The names of a RayService's applications, by its configuration."""
    config = yaml.safe_load(service["spec"].get("serveConfigV2") or "{}") or {}
    return [one["name"] for one in config.get("applications", ())]
