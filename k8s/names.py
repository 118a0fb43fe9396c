"""What things are called on Kubernetes: names of resources, labels, and the two folders of a pod."""

from __future__ import annotations

import hashlib
import json
from typing import Any

HOME = "/var/lib/shoal"  # $SHOAL_HOME of every pod: where the model cache is mounted
FILES = "/etc/shoal"  # where the files of the models are mounted
MANAGER = "shoal"  # the owner of every field that is applied

PLURALS = {
    "RayJob": "rayjobs",
    "RayService": "rayservices",
    "ConfigMap": "configmaps",
    "Service": "services",
    "Pod": "pods",
}
CORE = ("ConfigMap", "Service", "Pod")  # kinds of Kubernetes' own

MANAGED_BY = "app.kubernetes.io/managed-by"
# Which files something was made from: what `delete` goes by, so that the jobs of earlier versions of a file go as well.
INSTANCE = "app.kubernetes.io/instance"
POOL = "shoal.dev/pool"
# On the gateway's pods, with the service's name: what our Service goes by. KubeRay's own takes every pod that is ready.
GATEWAY = "shoal.dev/gateway"

# KubeRay takes six characters for the names of its Ray clusters and ten for those of their Services, of 63.
MOST = 47


def resource_name(model: str, suffix: str = "") -> str:
    """A name that KubeRay takes: small letters, digits and hyphens, 47 at most, a letter first. `suffix` is kept whole;
    of a long name the middle is given up for a digest."""
    name = model if model[0].isalpha() else f"m-{model}"
    if len(name) + len(suffix) > MOST:
        name = f"{name[: MOST - len(suffix) - 7].rstrip('-')}-{digest(model)}"
    return name + suffix


def digest(value: Any) -> str:
    """Six characters that change with a value of plain Python."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]


def labels(instance: str, component: str) -> dict[str, str]:
    """The labels of a resource. Pods get none of them: KubeRay's Services find theirs by app.kubernetes.io/name."""
    return {
        "app.kubernetes.io/name": "shoal",
        "app.kubernetes.io/component": component,
        INSTANCE: instance,
        MANAGED_BY: MANAGER,
    }
