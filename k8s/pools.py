"""Which node pool of cluster.yaml a file's workers take, and how many pods of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.errors import InputError
from cluster.settings.kubernetes import Kubernetes, NodePool
from cluster.spec import Spec

DEFAULT = "workers"  # the worker group where cluster.yaml names no pools
GATEWAY = "shoal-gateway"  # the worker group of the gateway


@dataclass(frozen=True)
class Need:
    """What one worker or replica asks for. `keys` are where the file says so, for messages."""

    name: str | None  # the pool that the file names
    cpus: float
    gpus: int
    keys: tuple[str, str, str]  # of the pool, the cores and the GPUs


@dataclass(frozen=True)
class Choice:
    """A pool, and how many of its pods run at least, at first and at most."""

    name: str
    pool: NodePool
    least: int
    most: int


def of_serving(spec: Spec, kube: Kubernetes) -> Choice:
    """The pool of a model's replicas. Raises InputError where none has room."""
    serve = spec.serve
    gpus = math.ceil(serve.num_gpus)
    if gpus and spec.task == "text-generation":
        gpus = max(gpus, serve.llm.tensor_parallel_size)
    need = Need(serve.node_pool, serve.num_cpus, gpus, ("serve.node_pool", "serve.num_cpus", "serve.num_gpus"))
    name, pool = choose(need, kube)
    share = serve.num_gpus if serve.num_gpus and gpus == math.ceil(serve.num_gpus) else gpus
    each = per_pod(pool, cpus=serve.num_cpus, gpus=share)
    # A new version starts beside the old one: there may be twice the copies for a while.
    least, most = math.ceil(serve.min_replicas / each), math.ceil(2 * serve.max_replicas / each)
    if least > pool.max_nodes:
        raise InputError(
            f"serve.min_replicas: {serve.min_replicas} need {least} pods of node pool {name}, which has "
            f"{pool.max_nodes} at most; lower it, or raise kubernetes.node_pools.{name}.max_nodes in cluster.yaml"
        )
    return Choice(name, pool, least, min(most, pool.max_nodes))


def of_gateway(kube: Kubernetes) -> Choice:
    """The gateway's own pods, where the head may run; one replica fills one."""
    pool = NodePool(
        cpus=kube.gateway.cpus,
        memory_gb=kube.gateway.memory_gb,
        node_selector=kube.head.node_selector,
        tolerations=kube.head.tolerations,
        max_nodes=kube.gateway.replicas,
    )
    return Choice(GATEWAY, pool, kube.gateway.replicas, kube.gateway.replicas)


def of_training(spec: Spec, kube: Kubernetes, *, tunes: bool) -> Choice:
    """The pool of a training's workers, or of a sweep's trials. Raises InputError where none has room."""
    need = Need(spec.train.node_pool, 1, 0, ("train.node_pool", "train.workers", "train.node_pool"))
    name, pool = choose(need, kube)
    workers = 1 if spec.model_ref().kind == "estimator" else spec.train.workers
    pods = math.ceil(workers / per_pod(pool, cpus=1, gpus=min(pool.gpus, 1)))
    if pods > pool.max_nodes:
        raise InputError(
            f"train.workers: {workers} need {pods} pods of node pool {name}, which has {pool.max_nodes} at most; lower "
            f"it, or raise kubernetes.node_pools.{name}.max_nodes in cluster.yaml"
        )
    # Pods of a training are there from the start and stay; those of a sweep come and go with its trials.
    return Choice(name, pool, pods, pool.max_nodes if tunes else pods)


def choose(need: Need, kube: Kubernetes) -> tuple[str, NodePool]:
    """The pool that is named, else the smallest with room. Raises InputError naming the pools there are."""
    pools = dict(kube.node_pools) or {DEFAULT: NodePool()}
    pool_key, cpus_key, gpus_key = need.keys
    if need.name is not None:
        if need.name not in kube.node_pools:
            raise InputError(f"{pool_key}: {need.name!r} is no node pool of cluster.yaml; {_there_are(kube)}")
        pools = {need.name: pools[need.name]}
    with_gpus = {name: pool for name, pool in pools.items() if pool.gpus >= need.gpus}
    if not with_gpus:
        which = f"node pool {need.name} has not" if need.name else "no node pool of cluster.yaml has"
        raise InputError(f"{gpus_key}: {need.gpus} GPUs for one copy, and {which} so many in a pod; {_there_are(kube)}")
    fitting = {name: pool for name, pool in with_gpus.items() if pool.cpus >= need.cpus}
    if not fitting:
        raise InputError(
            f"{cpus_key}: {need.cpus:g} cores for one copy, and no node pool that could take it has so many in a pod; "
            f"{_there_are(kube)}"
        )
    name = min(fitting, key=lambda one: (fitting[one].gpus, fitting[one].cpus, fitting[one].memory_gb, one))
    return name, fitting[name]


def per_pod(pool: NodePool, *, cpus: float, gpus: float) -> int:
    """How many of something fit into a pod, by cores and GPUs; 64 where it asks for neither."""
    counts = [math.floor(have / each) for have, each in ((pool.cpus, cpus), (pool.gpus, gpus)) if each > 0]
    return min(counts, default=64)


def _there_are(kube: Kubernetes) -> str:
    if not kube.node_pools:
        return "kubernetes.node_pools in cluster.yaml names none"
    shown = [f"{name} ({pool.cpus} cores, {pool.gpus} GPUs)" for name, pool in kube.node_pools.items()]
    return f"there are {', '.join(shown)}"
