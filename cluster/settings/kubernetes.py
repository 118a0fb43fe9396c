"""Where and how Shoal's resources run on Kubernetes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.spec.section import NAME, Section


class NodePool(Section):
    """Nodes of one kind, for a worker group."""

    node_selector: dict[str, str] = {}
    """Labels of the pool's nodes."""
    tolerations: list[dict[str, str]] = []
    """Taints of the pool's nodes that are to be tolerated."""
    cpus: Annotated[float, Field(gt=0)] = 4
    """CPU cores a pod asks for."""
    memory_gb: Annotated[float, Field(gt=0)] = 16
    """Memory a pod asks for, in GiB."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs a pod asks for."""
    gpu_resource: str = "nvidia.com/gpu"
    """The device plugin's name of a GPU."""
    max_nodes: Annotated[int, Field(ge=1)] = 10
    """Pods of this pool at most."""


class Kubernetes(Section):
    """Kubernetes."""

    namespace: Annotated[str, Field(pattern=NAME)] = "default"
    """Namespace of everything that is applied."""
    image: str = "shoal:0.1.0"
    """Container image with Shoal in it; the Containerfile makes one."""
    node_pools: dict[str, NodePool] = {}
    """Node pools by name. Without any, workers run wherever there is room."""
    model_cache: str | None = None
    """Name of a PersistentVolumeClaim (ReadWriteMany) for models, data, checkpoints and MLflow's files. Left out: an
    emptyDir, which ends with its pod."""
    tracking_uri: str | None = None
    """MLflow's tracking server as seen from the pods."""
