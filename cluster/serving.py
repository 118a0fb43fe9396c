"""What Serve is told of a model and of the gateway: pure functions of the spec, for a running cluster and for
Kubernetes alike. Imports no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import engine, scaling
from cluster.errors import InputError
from cluster.settings import Http, Shared, settings
from cluster.spec import Serve, Spec

# No model can have this name: names have no underscore.
GATEWAY = "_gateway"
QUIET = {"enable_access_log": False, "log_level": "WARNING"}

# What Serve's controller and replicas inherit from the node they run on: the settings that were measured.
SERVING = {
    # Our servers run on the replica's own loop, so that Serve's health check finds one that hangs.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "OMP_WAIT_POLICY": "PASSIVE",  # torch's threads sleep between operations: spinning ones fight a neighbour's
    "RAY_worker_niceness": "0",  # Ray runs workers at nice 15: an idle core away from anything else that computes
}


def listening(http: Http, host: str, port: int) -> dict[str, Any]:
    """What the gateway is told of where to listen."""
    listen: dict[str, Any] = {"host": host, "port": port}
    if http.name is not None:
        listen["name"] = http.name
    if http.certificate is not None and http.key is not None:
        listen |= {"certificate": str(Path(http.certificate).resolve()), "key": str(Path(http.key).resolve())}
    return listen


def reachable(host: str) -> str:
    """Where this machine reaches what listens on a host."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def hosted(host: str) -> str:
    """A host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def model_application(
    spec: Spec,
    *,
    model_uri: str,
    folder: str,
    attempt: int = 0,
    adapters: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """A model's application. `args` name the model, and a change of them starts new replicas; all else changes live.

    Serve does nothing about a configuration that it has failed with: another `attempt` makes it a new one. `folder`
    may be a reference, which the replica resolves. A language model's `adapters` are loaded beside the model in
    `folder` (name to cluster.engine.adapter); left out, and the file trains one, `folder` is that adapter's, and the
    model is the file's own.
    """
    serve: Serve = spec.serve
    check(spec)
    language = spec.task == engine.TASK
    if language and adapters is None:
        adapters = {}
        if engine.adapted(spec):
            adapters = {spec.name: engine.adapter(version=model_uri, folder=folder)}
            model_uri = folder = spec.model
    options: dict[str, Any] = {
        "name": "Model",
        # A replica that leaves finishes what it has in hand.
        "graceful_shutdown_timeout_s": serve.request_timeout_s + 5,
        "graceful_shutdown_wait_loop_s": 0.1,
        # One that hangs is replaced after 3 failures in a row: 15 s at most. The gateways leave it alone after 5.
        "health_check_period_s": 3,
        "health_check_timeout_s": 4,
        "ray_actor_options": {"num_cpus": serve.num_cpus, "num_gpus": serve.num_gpus},
        "user_config": {**batching(serve), "max_memory_gb": serve.max_memory_gb},
    }
    options |= scaling.replicas(spec, version=model_uri)
    args: dict[str, Any] = {
        "name": spec.name,
        "task": spec.task,
        "version": model_uri,
        "folder": folder,
        "device": "cuda" if serve.num_gpus > 0 else "cpu",
        "attempt": attempt,
        "dtype": serve.dtype,
    }
    if language:
        args = engine.args(spec, version=model_uri, folder=folder, attempt=attempt)
        limits = {"timeout_s": serve.request_timeout_s, "max_body_mb": settings().http.max_body_mb}
        counts = {
            "max_ongoing_requests": serve.max_ongoing_requests,
            "max_queued_requests": serve.max_queued_requests,
            "max_memory_gb": serve.max_memory_gb,
        }
        options |= {
            "name": "Llm",
            "ray_actor_options": engine.actor_options(spec),
            "user_config": {**engine.user_config(adapters or {}, **limits), **counts},
        }
    return {
        "name": spec.name,
        "route_prefix": f"/m/{spec.name}",
        "import_path": "serve.llm:build" if language else "serve.app:build",
        "args": args,
        "logging_config": QUIET,
        "deployments": [options],
    }


def check(spec: Spec) -> None:
    """Refuse keys of `serve` that the task can make nothing of. Raises InputError."""
    serve = spec.serve
    if serve.private and settings().access.keys != "required":
        raise InputError(
            f"serve.private: true: without keys nobody could ask {spec.name}; write access: {{keys: required}} in "
            "cluster.yaml, or leave private out"
        )
    if serve.dtype != "auto" and spec.task == engine.TASK:
        raise InputError(f"serve.dtype: {serve.dtype}: a language model's arithmetic is serve.llm.dtype; leave it out")
    if serve.dtype != "auto" and spec.task.startswith("tabular-"):
        raise InputError(f"serve.dtype: {serve.dtype}: scikit-learn's arithmetic is its own; leave it out")
    if serve.shared and spec.task == engine.TASK:
        raise InputError(f"serve.shared: {serve.shared}: a language model has an engine of its own; leave it out")


def shared_name(name: str) -> str:
    """The application of the copies that cluster.yaml has under `shared.<name>`. No model can have this name."""
    return f"_shared-{name}"


def shared_model(spec: Spec, *, model_uri: str, folder: str, attempt: int = 0) -> dict[str, Any]:
    """What shared copies are told of one of their models. Another `attempt` has it loaded again."""
    serve = spec.serve
    return {
        "task": spec.task,
        "version": model_uri,
        "folder": folder,
        "dtype": serve.dtype,
        "attempt": attempt,
        "config": batching(serve),
    }


def shared_application(
    name: str, shared: Shared, models: Mapping[str, dict[str, Any]], *, attempt: int = 0
) -> dict[str, Any]:
    """The application of shared copies. Its models (see `shared_model`) are `user_config`: they change live."""
    longest = max((model["config"]["request_timeout_s"] for model in models.values()), default=60.0)
    return {
        "name": shared_name(name),
        "route_prefix": f"/m/{shared_name(name)}",
        "import_path": "serve.shared:build",
        "args": {"name": name, "device": "cuda" if shared.num_gpus > 0 else "cpu", "attempt": attempt},
        "logging_config": QUIET,
        "deployments": [
            {
                "name": "Shared",
                "num_replicas": shared.replicas,
                "graceful_shutdown_timeout_s": longest + 5,
                "graceful_shutdown_wait_loop_s": 0.1,
                "health_check_period_s": 3,
                "health_check_timeout_s": 4,
                "ray_actor_options": {"num_cpus": shared.num_cpus, "num_gpus": shared.num_gpus},
                "user_config": {
                    "memory_mb": shared.memory_mb,
                    "max_ongoing_requests": shared.max_ongoing_requests,
                    "models": dict(models),
                },
            }
        ],
    }


def batching(serve: Serve) -> dict[str, Any]:
    """What changes in a model that is served without a restart: batching, queue, time and size limits."""
    return {
        "max_batch_size": min(serve.max_batch_size, serve.max_ongoing_requests),
        "max_batch_tokens": serve.max_batch_tokens,
        "batch_wait_ms": serve.batch_wait_ms,
        "max_ongoing_requests": serve.max_ongoing_requests,
        "max_queued_requests": serve.max_queued_requests,
        "request_timeout_s": serve.request_timeout_s,
        "max_body_mb": settings().http.max_body_mb,
        "max_pixels": settings().inputs.max_pixels,
    }


def gateway_application(
    models: dict[str, Any],
    *,
    listen: Mapping[str, Any],
    public_url: str,
    attempt: int = 0,
    home: Path | None = None,
    apart: bool = False,
) -> dict[str, Any]:
    """The gateway's application: what it knows of the models is `user_config`, which changes without a restart.
    `listen` is where clients are listened to ({host, port}, {certificate, key} with TLS, {name}), `public_url` where
    they reach that; no slash at its end. `home` is where it keeps keys, usage and logs; left out, the $SHOAL_HOME
    there. `apart`: no two on one node."""
    found = settings()
    http = found.http
    return {
        "name": GATEWAY,
        # No proxy of Serve's runs, and there is one application at each prefix.
        "route_prefix": "/",
        "import_path": "serve.gateway.app:build",
        "args": {"attempt": attempt},
        "logging_config": QUIET,
        "deployments": [
            {
                "name": "Gateway",
                "num_replicas": http.gateways,
                **({"max_replicas_per_node": 1} if apart else {}),
                # One that leaves finishes what it has in hand, however long the longest may take.
                "graceful_shutdown_timeout_s": max([60, *(model["timeout_s"] for model in models.values())]) + 15,
                "graceful_shutdown_wait_loop_s": 0.1,
                "health_check_period_s": 3,
                "health_check_timeout_s": 4,
                "ray_actor_options": {"num_cpus": 0},
                "user_config": {
                    "listen": dict(listen),
                    "public_url": public_url,
                    "max_body_mb": http.max_body_mb,
                    "access": found.access.model_dump(),
                    "request_log": found.request_log.model_dump(),
                    "home": None if home is None else str(home),
                    "send_timeout_s": http.send_timeout_s,
                    "models": models,
                },
            }
        ],
    }
