"""What Serve and the gateway are told of how a model scales: a part of cluster.serving, and as pure as that."""

from __future__ import annotations

from typing import Any

from cluster.settings import settings
from cluster.spec import Spec

POLICY = "serve.autoscale:Policy"


def replicas(spec: Spec, *, version: str) -> dict[str, Any]:
    """The number of replicas as options of a Serve deployment: fixed, or by Shoal's policy.

    Without `initial_replicas`, to which Serve would go back with each change of the configuration; the policy itself
    wants one of a version that was never up, so that a model that cannot be loaded fails now, not later.
    """
    serve = spec.serve
    if serve.min_replicas == serve.max_replicas:
        return {"num_replicas": serve.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": serve.min_replicas,
            "max_replicas": serve.max_replicas,
            "target_ongoing_requests": serve.target_ongoing_requests,
            # Delays are the policy's own matter.
            "upscale_delay_s": 0,
            "downscale_delay_s": 0,
            "downscale_to_zero_delay_s": 0,
            "policy": {"policy_function": POLICY, "policy_kwargs": {"version": version, "keys": keys(spec)}},
        }
    }


def keys(spec: Spec) -> dict[str, Any]:
    """What decisions are made by (see serve.scaling.decide.Keys), and beside it what the metric is read with."""
    serve, scale = spec.serve, spec.serve.autoscale
    found: dict[str, Any] = {
        "min_replicas": serve.min_replicas,
        "max_replicas": serve.max_replicas,
        "metric": scale.metric,
        "target": scale.aim(serve.target_ongoing_requests),
        "upscale_delay_s": scale.upscale_delay_s,
        "downscale_delay_s": scale.downscale_delay_s,
        "idle_s": scale.idle_s,
        "schedule": [window.model_dump() for window in scale.schedule],
        "num_cpus": serve.num_cpus,
    }
    if scale.metric == "prometheus":
        found |= {"query": scale.query, "prometheus": settings().prometheus.address}
    return found


def held(spec: Spec) -> dict[str, Any]:
    """What the gateway is told of the requests that wait for a replica: how many, and for how long."""
    return {"max_held": spec.serve.autoscale.max_held_requests, "hold_s": spec.serve.autoscale.hold_s}
