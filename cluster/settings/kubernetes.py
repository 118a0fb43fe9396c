"""Where and how Shoal's resources run on Kubernetes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.section import NAME, Section


class Toleration(Section):
    """A taint that pods are to tolerate, as Kubernetes writes it."""

    key: str | None = None
    """The taint's key. Left out: every key, with operator: Exists."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Equal compares `value` too, Exists takes any."""
    value: str | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Which effect is tolerated. Left out: every one."""


class NodePool(Section):
    """Nodes of one kind, for a worker group."""

    node_selector: dict[str, str] = {}
    """Labels of the pool's nodes."""
    tolerations: list[Toleration] = []
    """Taints of the pool's nodes that are to be tolerated."""
    cpus: Annotated[int, Field(ge=1, le=4096)] = 4
    """CPU cores a pod asks for: whole ones, because Ray counts them so."""
    memory_gb: Annotated[float, Field(gt=0, le=100_000)] = 16
    """Memory a pod asks for, in GiB."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs a pod asks for."""
    gpu_resource: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] = "nvidia.com/gpu"
    """The device plugin's name of a GPU."""
    max_nodes: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Pods of this pool at most."""


class Redis(Section):
    """Where the control service of a Ray cluster that serves keeps what it knows."""

    address: Annotated[str, Field(pattern=r"^(rediss?://)?[A-Za-z0-9.-]+:\d{1,5}$")]
    """HOST:PORT as seen from the head's pod; rediss://HOST:PORT with TLS. One that outlives the head, with a disk of
    its own where it is to outlive itself."""
    password_secret: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")] | None = None
    """Name of the Secret with Redis' password. Left out: no password."""
    password_key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$")] = "password"
    """The password's key in that Secret."""


class Head(Section):
    """The pod of Ray's own services, the autoscaler and a job's driver."""

    cpus: Annotated[int, Field(ge=1, le=256)] = 2
    """CPU cores it asks for. Ray gives none of them to workers."""
    memory_gb: Annotated[float, Field(gt=0, le=10_000)] = 8
    """Memory it asks for, in GiB."""
    node_selector: dict[str, str] = {}
    """Labels of the nodes it may run on."""
    tolerations: list[Toleration] = []
    """Taints of those nodes that are to be tolerated."""
    redis: Redis | None = None
    """With it a head that is lost comes back to its workers: what is served is answered meanwhile. Left out: the
    workers and all that they serve end with their head."""


class Gateway(Section):
    """The pods in front of the models. They run where the head may."""

    replicas: Annotated[int, Field(ge=1, le=100)] = 2
    """How many: a node that goes takes one of them."""
    cpus: Annotated[int, Field(ge=1, le=64)] = 1
    """CPU cores each asks for."""
    memory_gb: Annotated[float, Field(gt=0, le=1000)] = 2
    """Memory each asks for, in GiB."""


class Jobs(Section):
    """Training and tuning, which end by themselves."""

    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 0
    """How often a job that failed is started again, each time on a new Ray cluster; with `model_cache` it goes on from
    its last checkpoint. A gate that is not met fails a job too. Lost workers are replaced all the same."""
    deadline_s: Annotated[int, Field(ge=60)] = 86_400
    """A job that takes longer is ended, in seconds."""
    ttl_s: Annotated[int, Field(ge=0)] = 300
    """How long the pods of a finished job are kept, for their logs, in seconds."""


class Kubernetes(Section):
    """Kubernetes with KubeRay."""

    namespace: Annotated[str, Field(pattern=NAME)] | None = None
    """Namespace of everything that is applied; it must exist. Left out: that of kubectl's context."""
    context: str | None = None
    """Which context of the kubeconfig. Left out: the current one."""
    image: str = "shoal:0.1.0"
    """Container image with Shoal in it; the Containerfile makes one."""
    service: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,45}[a-z0-9])?$")] = "shoal"
    """Name of the RayService of several files, which share one Ray cluster and one gateway. One file alone has a
    RayService of its own, by the name of its model."""
    head: Head = Head()
    gateway: Gateway = Gateway()
    node_pools: dict[Annotated[str, Field(pattern=NAME)], NodePool] = {}
    """Node pools by name. Without any, workers ask for 4 cores and 16 GiB and run wherever there is room."""
    model_cache: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")] | None = None
    """Name of a PersistentVolumeClaim (ReadWriteMany) for models, data, checkpoints and MLflow's files. Left out: an
    emptyDir, which ends with its pod; a job then has one pod only."""
    tracking_uri: str | None = None
    """MLflow's tracking server as seen from the pods. Left out: a store in `model_cache`."""
    secrets: list[Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]] = []
    """Names of Secrets whose keys become environment variables, e.g. HF_TOKEN or MLFLOW_TRACKING_TOKEN."""
    jobs: Jobs = Jobs()
