"""What KubeRay's operator refuses although its CRDs let it through: such a resource is stored, and nothing happens.

The rules are KubeRay 1.7's (ray-operator/controllers/ray/utils/validation.go), each in words of our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from k8s.names import MOST

Fault = tuple[str, str]  # where, what
Tree = dict[str, Any]

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", re.ASCII)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_STRATEGIES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
_RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
_LEAST_FOR_TOKENS = (2, 52)


def faults(manifest: Tree) -> Iterator[Fault]:
    """Every rule that a RayJob or RayService breaks; nothing of other kinds."""
    if manifest.get("kind") not in ("RayJob", "RayService"):
        return
    name = str(manifest.get("metadata", {}).get("name", ""))
    if len(name) > MOST or not _DNS_LABEL.fullmatch(name):
        yield "metadata.name", f"{name!r}: small letters, digits and hyphens, a letter first, {MOST} at most"
    spec = manifest.get("spec", {})
    yield from _job(spec) if manifest["kind"] == "RayJob" else _service(spec)


def _service(spec: Tree) -> Iterator[Fault]:
    cluster = spec.get("rayClusterConfig", {})
    yield from _cluster(cluster, "spec.rayClusterConfig")
    if cluster.get("headGroupSpec", {}).get("headService", {}).get("metadata", {}).get("name"):
        yield "spec.rayClusterConfig.headGroupSpec.headService.metadata.name", "KubeRay names this Service itself"
    strategy = spec.get("upgradeStrategy", {})
    kind = strategy.get("type")
    if kind is not None and kind not in _STRATEGIES:
        yield "spec.upgradeStrategy.type", f"{kind!r} is none of {', '.join(_STRATEGIES)}"
    if kind == "NewClusterWithIncrementalUpgrade":
        yield from _incremental(cluster, strategy.get("clusterUpgradeOptions"))


def _incremental(cluster: Tree, options: Tree | None) -> Iterator[Fault]:
    where = "spec.upgradeStrategy.clusterUpgradeOptions"
    if not cluster.get("enableInTreeAutoscaling"):
        yield "spec.rayClusterConfig.enableInTreeAutoscaling", "an incremental upgrade needs Ray's autoscaler"
    if options is None:
        yield where, "missing; an incremental upgrade needs it"
        return
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    for key, percent in (("maxSurgePercent", surge), ("stepSizePercent", step)):
        if not 0 <= percent <= 100:
            yield f"{where}.{key}", f"{percent} is no percentage"
    if step > surge:
        yield f"{where}.stepSizePercent", f"{step} is more than maxSurgePercent {surge}"
    if options.get("intervalSeconds", 0) <= 0:
        yield f"{where}.intervalSeconds", "must be more than 0"
    if not options.get("gatewayClassName"):
        yield f"{where}.gatewayClassName", "missing; traffic is moved by the Gateway API"


def _job(spec: Tree) -> Iterator[Fault]:
    cluster, selector = spec.get("rayClusterSpec"), spec.get("clusterSelector")
    ends, mode = bool(spec.get("shutdownAfterJobFinishes")), spec.get("submissionMode", "K8sJobMode")
    if cluster is None and not selector:
        yield "spec.rayClusterSpec", "missing; a job has a cluster of its own or a clusterSelector"
    if selector and not selector.get("ray.io/cluster"):
        yield "spec.clusterSelector", "has no ray.io/cluster"
    if selector and mode == "SidecarMode":
        yield "spec.submissionMode", "SidecarMode needs a cluster of the job's own"
    if spec.get("suspend") and (not ends or selector):
        yield "spec.suspend", "only a job with a cluster of its own and shutdownAfterJobFinishes can be suspended"
    ttl = spec.get("ttlSecondsAfterFinished", 0)
    if ttl < 0:
        yield "spec.ttlSecondsAfterFinished", f"{ttl} is less than 0"
    if ttl > 0 and not ends:
        yield "spec.ttlSecondsAfterFinished", "means nothing without shutdownAfterJobFinishes"
    if (limit := spec.get("backoffLimit", 0)) < 0:
        yield "spec.backoffLimit", f"{limit} is less than 0"
    if limit > 0 and mode == "InteractiveMode":
        yield "spec.backoffLimit", "a job in InteractiveMode is not started again"
    if (deadline := spec.get("activeDeadlineSeconds")) is not None and deadline <= 0:
        yield "spec.activeDeadlineSeconds", f"{deadline} must be more than 0"
    if mode == "SidecarMode":
        for key in ("submitterPodTemplate", "submitterConfig"):
            if key in spec:
                yield f"spec.{key}", "there is no submitting pod in SidecarMode"
    if cluster is not None:
        yield from _cluster(cluster, "spec.rayClusterSpec")
    if "deletionStrategy" in spec:
        yield from _deletion(spec, ends, bool(cluster and cluster.get("enableInTreeAutoscaling")))


def _deletion(spec: Tree, ends: bool, autoscales: bool) -> Iterator[Fault]:
    where, strategy = "spec.deletionStrategy", spec["deletionStrategy"]
    rules = strategy.get("deletionRules", [])
    if rules and ends:
        yield f"{where}.deletionRules", "excludes shutdownAfterJobFinishes"
    if not rules and not (strategy.get("onSuccess") and strategy.get("onFailure")):
        yield where, "needs deletionRules, or both onSuccess and onFailure"
    policies = [strategy.get(key, {}).get("policy") for key in ("onSuccess", "onFailure")]
    if ends and "DeleteNone" in policies:
        yield where, "DeleteNone contradicts shutdownAfterJobFinishes"
    policies += [rule.get("policy") for rule in rules]
    if spec.get("clusterSelector") and {"DeleteCluster", "DeleteWorkers"} & set(policies):
        yield where, "a cluster that is not the job's own is not deleted with it"
    if autoscales and "DeleteWorkers" in policies:
        yield where, "DeleteWorkers does not go with the autoscaler"
    seen: dict[tuple[Any, Any], int] = {}
    for index, rule in enumerate(rules):
        condition = rule.get("condition", {})
        status = condition.get("jobStatus") or condition.get("jobDeploymentStatus")
        if (status, rule.get("policy")) in seen:
            yield f"{where}.deletionRules.{index}", f"{rule.get('policy')} on {status} stands twice"
        seen[(status, rule.get("policy"))] = condition.get("ttlSeconds", 0)
    order = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
    for status in {status for status, _ in seen}:
        times = [seen[(status, policy)] for policy in order if (status, policy) in seen]
        if times != sorted(times):
            yield f"{where}.deletionRules", f"on {status}: workers go first, then the cluster, then the job itself"


def _cluster(cluster: Tree, where: str) -> Iterator[Fault]:
    head, groups = cluster.get("headGroupSpec", {}), cluster.get("workerGroupSpecs", [])
    names = [f"{where}.headGroupSpec", *(f"{where}.workerGroupSpecs.{index}" for index in range(len(groups)))]
    autoscales = bool(cluster.get("enableInTreeAutoscaling"))
    v2 = autoscales and cluster.get("autoscalerOptions", {}).get("version") == "v2"
    for name, group in zip(names, [head, *groups], strict=True):
        pod = group.get("template", {}).get("spec", {})
        if not pod.get("containers"):
            yield f"{name}.template.spec.containers", "missing; Ray's container is the first"
        params = group.get("rayStartParams", {})
        if group.get("resources") and any(params.get(key) for key in _RESOURCE_PARAMS):
            yield f"{name}.resources", "excludes amounts in rayStartParams"
        if "labels" in params:
            yield f"{name}.rayStartParams.labels", "Ray's labels stand in the group's own labels"
        for key, value in group.get("labels", {}).items():
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                yield f"{name}.labels", f"{key}: {value!r} is no label"
        if v2 and pod.get("restartPolicy", "Never") != "Never":
            yield f"{name}.template.spec.restartPolicy", "must be Never: autoscaler v2 replaces pods itself"
        if autoscales and group.get("suspend"):
            yield f"{name}.suspend", "does not go with the autoscaler"
        if group.get("minReplicas", 0) > group.get("maxReplicas", 2**31):
            yield f"{name}.minReplicas", "is more than maxReplicas"
    names_of = [group.get("groupName") for group in groups]
    for name in {name for name in names_of if names_of.count(name) > 1}:
        yield f"{where}.workerGroupSpecs", f"the group {name!r} stands twice"
    containers = head.get("template", {}).get("spec", {}).get("containers") or [{}]
    environment = {one.get("name"): one.get("value") for one in containers[0].get("env", [])}
    if not autoscales and environment.get("RAY_enable_autoscaler_v2") in ("1", "true"):
        yield f"{where}.headGroupSpec", "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling"
    if "version" in cluster.get("autoscalerOptions", {}) and "RAY_enable_autoscaler_v2" in environment:
        yield f"{where}.headGroupSpec", "RAY_enable_autoscaler_v2 excludes autoscalerOptions.version"
    if "RAY_REDIS_ADDRESS" in environment:
        yield f"{where}.headGroupSpec", "RAY_REDIS_ADDRESS stands in gcsFaultToleranceOptions"
    if cluster.get("authOptions", {}).get("mode") == "token" and _version(cluster) < _LEAST_FOR_TOKENS:
        yield f"{where}.rayVersion", f"{cluster.get('rayVersion')!r}: tokens need Ray 2.52 or newer"


def _version(cluster: Tree) -> tuple[int, int]:
    match = re.match(r"v?(\d+)\.(\d+)", str(cluster.get("rayVersion", "")))
    return (int(match[1]), int(match[2])) if match else (0, 0)
