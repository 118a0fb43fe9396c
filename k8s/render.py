"""From files to manifests: a RayJob for what trains or tunes, a RayService for what serves, and their ConfigMaps.

Pure: specs and settings in, plain dictionaries out; no cluster is asked and nothing heavy is imported. What a model's
application looks like stands in cluster.serving, the same for a laptop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from cluster import tasks
from cluster.errors import InputError
from cluster.plan.checks import kind
from cluster.serving import GATEWAY, QUIET, gateway_application
from cluster.settings.kubernetes import Kubernetes
from cluster.spec import Spec
from k8s import pools, reach
from k8s.documents import to_yaml
from k8s.names import FILES, POOL, digest, labels, resource_name
from k8s.names import GATEWAY as GATEWAY_MARK
from k8s.pods import SERVE_PORT, fault_tolerance, one_pod, ray_cluster, submitter
from k8s.served import served

Verb = Literal["up", "train", "tune", "serve"]
Manifest = dict[str, Any]


def render(specs: Sequence[Spec], kube: Kubernetes, verb: Verb = "up") -> list[Manifest]:
    """The manifests of what `shoal VERB FILE...` does, in the order in which they are to be applied.

    One file has a RayService of its own; several share one Ray cluster, with one gateway in front. Raises InputError
    where a file asks for what pods cannot reach or no node pool has.
    """
    names = [spec.name for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"name: {', '.join(sorted(twice))} stands in two of the files; a name is one model's")
    jobs: dict[str, list[Manifest]] = {}
    for spec in specs:
        if verb in ("train", "tune") or (verb == "up" and spec.data.train is not None):
            jobs[spec.name] = _job(spec, kube, verb)
    manifests = [manifest for job in jobs.values() for manifest in job]
    if verb in ("up", "serve"):
        attempts = {name: int(digest(job), 16) for name, job in jobs.items()}
        manifests += _service(specs, kube, attempts)
    return manifests


def _job(spec: Spec, kube: Kubernetes, verb: Verb) -> list[Manifest]:
    """The RayJob of a file and its ConfigMap. Their names change with whatever they hold: a RayJob runs once, and a
    file that changed is another job."""
    row = tasks.trainable(spec)
    kind(spec, row, True)
    if spec.data.train is None:
        raise InputError(f"data.train: missing; `shoal {verb}` learns from rows")
    reach.check(spec, kube, trains=True)
    tunes = verb == "tune"
    choice = pools.of_training(spec, kube, tunes=tunes)
    file = f"{FILES}/{spec.name}.yaml"
    # One command, where KubeRay's own shell would run what stands behind && in the submitting pod.
    entry = {
        "up": f'bash -c "shoal train {file} && shoal evaluate {file}"',
        "train": f"shoal train {file}",
        "tune": f"shoal tune {file}",
    }[verb]
    data = {f"{spec.name}.yaml": to_yaml([spec.model_dump(exclude_unset=True)]), "cluster.yaml": _cluster_yaml(kube)}

    def job(name: str) -> Manifest:
        if kube.model_cache:
            cluster = ray_cluster(kube, [choice], name, serves=False)
        elif choice.least == 1 and not tunes:
            cluster = one_pod(kube, choice, name)
        else:
            raise InputError(
                f"kubernetes.model_cache: missing in cluster.yaml: {spec.name} needs pods that share data and "
                "checkpoints; write the name of a ReadWriteMany claim"
            )
        return {
            "entrypoint": entry,
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": kube.jobs.ttl_s,
            "activeDeadlineSeconds": kube.jobs.deadline_s,
            "backoffLimit": kube.jobs.backoff_limit,
            "submitterPodTemplate": submitter(kube),
            "rayClusterSpec": cluster,
        }

    stage = "tune" if tunes else "train"
    name = resource_name(spec.name, f"-{stage}-{digest([job(''), data])}")
    marks = labels(resource_name(spec.name), stage)
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(name, kube, marks, [spec.name]), "data": data},
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": _metadata(name, kube, marks, [spec.name]),
            "spec": job(name),
        },
    ]


def _service(specs: Sequence[Spec], kube: Kubernetes, attempts: dict[str, int]) -> list[Manifest]:
    """The RayService of one or several files, and its ConfigMap."""
    name = resource_name(specs[0].name) if len(specs) == 1 else kube.service
    # In one order, whatever that of the files: KubeRay would take another one for another cluster.
    specs = sorted(specs, key=lambda spec: spec.name)
    choices: dict[str, pools.Choice] = {}
    applications: list[Manifest] = []
    models: dict[str, Any] = {}
    for spec in specs:
        row = tasks.servable(spec)
        kind(spec, row, spec.data.train is not None)
        reach.check(spec, kube, trains=spec.data.train is not None)
        choice = pools.of_serving(spec, kube)
        choices[choice.name] = _both(choices.get(choice.name), choice)
        application, told = served(spec, attempt=attempts.get(spec.name, 0))
        _pin(application, choice.name)
        applications.append(application)
        models |= told
    marks = labels(name, "serve")
    entrance = {GATEWAY_MARK: name}
    metadata = _metadata(name, kube, marks, [spec.name for spec in specs])
    files = f"{name}-files"
    data = {"cluster.yaml": _cluster_yaml(kube)}
    cluster = ray_cluster(
        kube, [pools.of_gateway(kube), *(choices[pool] for pool in sorted(choices))], files, serves=True
    )
    if kube.head.redis is not None:
        cluster["gcsFaultToleranceOptions"] = fault_tolerance(kube.head.redis)
    # Pods read the ConfigMap when they start: where it changes they are to be others.
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        group["template"]["metadata"] = {"annotations": {"shoal.dev/files": digest(data)}}
    cluster["workerGroupSpecs"][0]["template"]["metadata"]["labels"] = entrance
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**metadata, "name": files}, "data": data},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**metadata, "name": service_name(name)},
            "spec": {
                "selector": entrance,
                "ports": [{"name": "http", "protocol": "TCP", "port": SERVE_PORT, "targetPort": "serve"}],
            },
        },
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": metadata,
            "spec": {
                "upgradeStrategy": {"type": "NewCluster"},
                "serveConfigV2": to_yaml([_serve_config(applications, models, url(name, kube.namespace), kube)]),
                "rayClusterConfig": cluster,
            },
        },
    ]


def _serve_config(
    applications: list[Manifest], models: dict[str, Any], public_url: str, kube: Kubernetes
) -> dict[str, Any]:
    """What Serve is told: the models' applications, and the gateway's before them."""
    gateway = gateway_application(models, listen={"host": "0.0.0.0", "port": SERVE_PORT}, public_url=public_url)
    assert gateway["name"] == GATEWAY
    # One a pod, on pods of its own: elsewhere it would keep a pool's last node from going.
    gateway["deployments"][0]["num_replicas"] = kube.gateway.replicas
    gateway["deployments"][0]["ray_actor_options"] = {"num_cpus": kube.gateway.cpus}
    _pin(gateway, pools.GATEWAY)
    return {
        "proxy_location": "Disabled",
        "logging_config": QUIET,
        "applications": [gateway, *applications],
    }


def service_name(service: str) -> str:
    """The Service before a RayService's gateways. The one that KubeRay makes sends to every pod of the cluster."""
    return f"{service}-gateway"


def url(service: str, namespace: str | None) -> str:
    """Where a RayService answers within the Kubernetes cluster."""
    host = service_name(service)
    return f"http://{f'{host}.{namespace}.svc' if namespace else host}:{SERVE_PORT}"


def _pin(application: Manifest, pool: str) -> None:
    """Let replicas start on their pool's pods alone: those without GPUs would fill the GPUs' nodes."""
    for deployment in application["deployments"]:
        if "ray_actor_options" in deployment:
            deployment["ray_actor_options"]["label_selector"] = {POOL: pool}


def _both(one: pools.Choice | None, other: pools.Choice) -> pools.Choice:
    """One group of workers for two models of the same pool."""
    if one is None:
        return other
    most = other.pool.max_nodes
    least = min(one.least + other.least, most)
    return pools.Choice(other.name, other.pool, least, min(one.most + other.most, most))


def _cluster_yaml(kube: Kubernetes) -> str:
    """What the pods' Shoal is to know of cluster.yaml."""
    known = {"tracking_uri": kube.tracking_uri} if kube.tracking_uri else {}
    return to_yaml([known]) if known else "# All is default.\n"


def _metadata(name: str, kube: Kubernetes, marks: dict[str, str], models: list[str]) -> dict[str, Any]:
    namespace = {"namespace": kube.namespace} if kube.namespace else {}
    return {"name": name, **namespace, "labels": marks, "annotations": {"shoal.dev/models": ",".join(models)}}
