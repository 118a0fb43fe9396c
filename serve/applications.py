"""Serve's declarative configuration: what a model's and the gateway's application look like, and how all of them are
read, changed in one place and written back.

Everything goes over the dashboard's REST interface, so no Ray is imported and nothing attaches to the cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from filelock import FileLock

from cluster.errors import ClusterGone, RunFailed
from cluster.settings import settings
from cluster.spec import Serve, Spec

if TYPE_CHECKING:
    from cluster.connect import Cluster

# No model can have this name: names have no underscore.
GATEWAY = "_gateway"
QUIET = {"enable_access_log": False, "log_level": "WARNING"}
_BACKPRESSURE = {"status_code": 429, "retry_after_s": 1}


def model_application(spec: Spec, *, model_uri: str, folder: Path, attempt: int = 0) -> dict[str, Any]:
    """A model's application. `args` name the model, and a change of them starts new replicas; all else changes live.

    Serve does nothing about a configuration that it has failed with: another `attempt` makes it a new one.
    """
    serve: Serve = spec.serve
    options: dict[str, Any] = {
        "name": "Model",
        "max_ongoing_requests": serve.max_ongoing_requests,
        "max_queued_requests": serve.max_queued_requests,
        "backpressure_config": _BACKPRESSURE,
        "graceful_shutdown_timeout_s": min(serve.request_timeout_s, 30),
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 10,
        "health_check_timeout_s": 30,
        "ray_actor_options": {"num_cpus": serve.num_cpus, "num_gpus": serve.num_gpus},
        "user_config": {
            "max_batch_size": min(serve.max_batch_size, serve.max_ongoing_requests),
            "batch_wait_ms": serve.batch_wait_ms,
            "request_timeout_s": serve.request_timeout_s,
            "max_body_mb": settings().http.max_body_mb,
        },
    }
    if serve.min_replicas == serve.max_replicas:
        options["num_replicas"] = serve.min_replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": serve.min_replicas,
            # One is started even where none need stay: a model that cannot be loaded is to fail now, not later.
            "initial_replicas": max(serve.min_replicas, 1),
            "max_replicas": serve.max_replicas,
            "target_ongoing_requests": serve.target_ongoing_requests,
            "upscale_delay_s": 2,
            "downscale_delay_s": 60,
            "metrics_interval_s": 1,
            "look_back_period_s": 5,
        }
    return {
        "name": spec.name,
        "route_prefix": f"/m/{spec.name}",
        "import_path": "serve.app:build",
        "args": {
            "name": spec.name,
            "task": spec.task,
            "version": model_uri,
            "folder": str(folder.resolve()),
            "device": "cuda" if serve.num_gpus > 0 else "cpu",
            "attempt": attempt,
        },
        "logging_config": QUIET,
        "deployments": [options],
    }


def gateway_application(cluster: Cluster, models: dict[str, Any], *, attempt: int = 0) -> dict[str, Any]:
    """The gateway's application: what it knows of the models is `user_config`, which changes without a restart."""
    return {
        "name": GATEWAY,
        "route_prefix": "/",
        "import_path": "serve.gateway:build",
        "args": {"attempt": attempt},
        "logging_config": QUIET,
        "deployments": [
            {
                "name": "Gateway",
                "num_replicas": 1,
                "max_ongoing_requests": 4096,
                "max_queued_requests": 1024,
                "backpressure_config": _BACKPRESSURE,
                "graceful_shutdown_timeout_s": 30,
                "graceful_shutdown_wait_loop_s": 0.5,
                "ray_actor_options": {"num_cpus": 0},
                "user_config": {
                    "upstream": f"http://127.0.0.1:{cluster.http_port}",
                    "public_url": cluster.http_url,
                    "max_body_mb": settings().http.max_body_mb,
                    "models": models,
                },
            }
        ],
    }


class Change:
    """Read the applications, let the caller change them, write all back: one process at a time.

    What is unchanged in the list is left alone by Serve, replicas and all.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.lock = FileLock(cluster.home / "serve.lock")

    def __enter__(self) -> Change:
        self.lock.acquire()
        try:
            self.found = read(self.cluster)
        except BaseException:
            self.lock.release()
            raise
        self.before = {
            name: _written(details["deployed_app_config"])
            for name, details in self.found.items()
            if details["deployed_app_config"] and details["status"] != "DELETING"
        }
        self.applications = dict(self.before)
        return self

    def failed(self, name: str) -> bool:
        """Whether Serve has given up on an application as it is configured."""
        return name in self.found and self.found[name]["status"] == "DEPLOY_FAILED"

    def attempt(self, name: str) -> int:
        """The number of the attempt to write: another one after a failure, else the same again."""
        written = self.before.get(name)
        return (written["args"].get("attempt", 0) if written else 0) + self.failed(name)

    def tell_gateway(self, models: dict[str, Any]) -> None:
        """Let the gateway know of exactly these models, starting one if there is none."""
        self.applications[GATEWAY] = gateway_application(self.cluster, models, attempt=self.attempt(GATEWAY))

    def models(self) -> dict[str, Any]:
        """What the gateway knows."""
        gateway = self.before.get(GATEWAY)
        return dict(gateway["deployments"][0]["user_config"]["models"]) if gateway else {}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.applications != self.before:
                config = {
                    "proxy_location": "EveryNode",
                    "http_options": {"host": self.cluster.http_host, "port": self.cluster.http_port},
                    "logging_config": QUIET,
                    "applications": list(self.applications.values()),
                }
                _ask(self.cluster, "PUT", config)
        finally:
            self.lock.release()


def _written(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it was written: Serve gives it back with the keys that were left out as null."""
    keys = ("name", "route_prefix", "import_path", "args", "logging_config", "deployments")
    return {key: config[key] for key in keys}


def read(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """What Serve says of each application, by name: status, message, deployments, replicas, configuration."""
    return _ask(cluster, "GET")["applications"]


def _ask(cluster: Cluster, method: str, config: dict[str, Any] | None = None) -> Any:
    """Ask Serve's REST interface. Raises ClusterGone where nobody answers, RunFailed where it refuses."""
    headers = {"Authorization": f"Bearer {cluster.token}"} if cluster.token else {}
    url = f"{cluster.dashboard_url.rstrip('/')}/api/serve/applications/"
    try:
        response = httpx.request(method, url, json=config, headers=headers, timeout=60, trust_env=False)
    except httpx.HTTPError as error:
        raise ClusterGone(f"{url}: {error or type(error).__name__}; `shoal doctor` looks into it") from None
    if response.status_code != 200:
        raise RunFailed(f"Serve refused ({response.status_code}): {response.text[:2000]}")
    return response.json() if method == "GET" else None
