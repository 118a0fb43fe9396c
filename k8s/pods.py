"""Pods, and the Ray cluster that they make: what a RayJob and a RayService have in common. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.serving import SERVING
from cluster.settings.kubernetes import Head, Kubernetes, NodePool, Redis, Toleration
from k8s.names import FILES, HOME, POOL
from k8s.pools import GATEWAY as GATEWAY_POOL
from k8s.pools import Choice

RAY_VERSION = "2.60.0"
SERVE_PORT = 8000
AGENT_PORT = 52365  # Ray's agent on each node, where KubeRay looks as well
IDLE_S = 60  # a worker pod without work goes after so many seconds

_USER = 1000  # the Containerfile's
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
    # A claim with a million files is not gone through again at every start.
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080, "serve": SERVE_PORT}
_WORKER_PORTS = {"metrics": 8080, "serve": SERVE_PORT}


def ray_cluster(kube: Kubernetes, choices: Sequence[Choice], files: str, *, serves: bool) -> dict[str, Any]:
    """A RayCluster's spec: a head, and a group of workers for each choice. `files` names the ConfigMap."""
    return {
        "rayVersion": RAY_VERSION,
        # KubeRay makes the token, and every container of the cluster gets it.
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": IDLE_S,
            "upscalingMode": "Default",
            "securityContext": CONTAINER_SECURITY,
            "resources": _resources(cpus="500m", memory="1Gi"),
        },
        "headGroupSpec": {
            # The head has Ray's own services and a job's driver; a replica or worker there would take them down with
            # it.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _template(
                kube,
                "ray-head",
                _resources(cpus=str(kube.head.cpus), memory=gib(kube.head.memory_gb)),
                kube.head,
                files,
                ports=_HEAD_PORTS,
            ),
        },
        "workerGroupSpecs": [_workers(kube, choice, files, serves=serves) for choice in choices],
    }


def fault_tolerance(redis: Redis) -> dict[str, Any]:
    """What lets workers outlive their head. KubeRay has them wait ten minutes for it then, in place of Ray's one."""
    options: dict[str, Any] = {"redisAddress": redis.address}
    if redis.password_secret is not None:
        secret = {"name": redis.password_secret, "key": redis.password_key}
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": secret}}
    return options


def one_pod(kube: Kubernetes, choice: Choice, files: str) -> dict[str, Any]:
    """A RayCluster's spec with a head alone, which does all the work: what the pods would share, one pod has."""
    pool = choice.pool
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0", **_gpu_param(pool)},
            "template": _template(kube, "ray-head", pool_resources(pool), pool, files, ports=_HEAD_PORTS),
        },
    }


def _workers(kube: Kubernetes, choice: Choice, files: str, *, serves: bool) -> dict[str, Any]:
    template = _template(kube, "ray-worker", pool_resources(choice.pool), choice.pool, files, ports=_WORKER_PORTS)
    # Nothing on a worker asks the API server anything.
    template["spec"]["automountServiceAccountToken"] = False
    if serves:
        # Asked by the kubelet itself. KubeRay would run wget in the pod for that, and for a proxy that none has; its
        # liveness probe stays. The gateway's pods are ready once every model has been up there, those of models when
        # Ray is. The head gets no such probe: KubeRay waits for a ready head before it hands over the applications.
        place = {"path": "/-/ready", "port": SERVE_PORT}
        if choice.name != GATEWAY_POOL:
            place = {"path": "/api/local_raylet_healthz", "port": AGENT_PORT}
        template["spec"]["containers"][0]["readinessProbe"] = {
            "httpGet": place,
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        }
        # A replica that leaves finishes what it has in hand.
        template["spec"]["terminationGracePeriodSeconds"] = 60
    return {
        "groupName": choice.name,
        "replicas": choice.least,
        "minReplicas": choice.least,
        "maxReplicas": choice.most,
        "rayStartParams": _gpu_param(choice.pool),
        "labels": {POOL: choice.name},
        "template": template,
    }


def submitter(kube: Kubernetes) -> dict[str, Any]:
    """The pod that hands a job to its Ray cluster and follows its log."""
    container = {
        "name": "ray-job-submitter",
        "image": kube.image,
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": CONTAINER_SECURITY,
    }
    return {
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": _POD_SECURITY,
            "containers": [container],
        }
    }


def _template(
    kube: Kubernetes,
    name: str,
    resources: dict[str, Any],
    place: Head | NodePool,
    files: str,
    *,
    ports: Mapping[str, int],
) -> dict[str, Any]:
    """A pod with one container of Shoal's image; `files` is the ConfigMap with cluster.yaml and the models' files."""
    environment = {
        "SHOAL_HOME": HOME,
        "HF_HOME": f"{HOME}/huggingface",
        "RAY_USAGE_STATS_ENABLED": "0",
        **SERVING,
    }
    container: dict[str, Any] = {
        "name": name,
        "image": kube.image,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": resources,
        "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
        "securityContext": CONTAINER_SECURITY,
        # A file of a ConfigMap in the midst of the cache: settings are looked for where the state is.
        "volumeMounts": [
            {"name": "home", "mountPath": HOME},
            {"name": "files", "mountPath": f"{HOME}/cluster.yaml", "subPath": "cluster.yaml", "readOnly": True},
            {"name": "files", "mountPath": FILES, "readOnly": True},
        ],
    }
    if kube.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in kube.secrets]
    claim = {"persistentVolumeClaim": {"claimName": kube.model_cache}} if kube.model_cache else {"emptyDir": {}}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # autoscaler v2 replaces pods itself
        "securityContext": _POD_SECURITY,
        "containers": [container],
        "volumes": [{"name": "home", **claim}, {"name": "files", "configMap": {"name": files}}],
    }
    if place.node_selector:
        spec["nodeSelector"] = dict(place.node_selector)
    if tolerations := [_toleration(one) for one in place.tolerations]:
        spec["tolerations"] = tolerations
    return {"spec": spec}


def pool_resources(pool: NodePool) -> dict[str, Any]:
    """What a pod of a pool asks for and may use: the same, so that no other pod's load takes it away."""
    gpus = {pool.gpu_resource: str(pool.gpus)} if pool.gpus else {}
    return _resources(cpus=str(pool.cpus), memory=gib(pool.memory_gb), **gpus)


def _resources(*, cpus: str, memory: str, **others: str) -> dict[str, Any]:
    amounts = {"cpu": cpus, "memory": memory, **others}
    return {"requests": amounts, "limits": dict(amounts)}


def gib(amount: float) -> str:
    """GiB as a quantity of Kubernetes, in whole MiB where it is no whole number."""
    return f"{int(amount)}Gi" if amount == int(amount) else f"{math.ceil(amount * 1024)}Mi"


def _gpu_param(pool: NodePool) -> dict[str, str]:
    """KubeRay and the autoscaler see GPUs in resources that end in "gpu", and have to be told of all others."""
    return {} if not pool.gpus or pool.gpu_resource.endswith("gpu") else {"num-gpus": str(pool.gpus)}


def _toleration(one: Toleration) -> dict[str, str]:
    return {key: value for key, value in one.model_dump().items() if value is not None}
