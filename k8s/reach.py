"""What pods can reach of what a file names: nothing that lies on the machine where the file is written."""

from __future__ import annotations

from cluster.errors import InputError
from cluster.settings.kubernetes import Kubernetes
from cluster.spec import Spec
from k8s.names import HOME


def check(spec: Spec, kube: Kubernetes, *, trains: bool) -> None:
    """Refuse a model or data that no pod would find. Raises InputError naming the key and what to write."""
    reference = spec.model_ref()
    if reference.kind == "local":
        _folder("model", spec.model, kube, "a Hub id (org/name), models:/name@alias")
    if trains:
        for split in ("train", "validation", "test"):
            text = getattr(spec.data, split)
            if text is not None and not text.startswith("hf://"):
                _folder(f"data.{split}", text, kube, "hf://org/name")
    kept = kube.tracking_uri or kube.model_cache
    if trains and not kept:
        raise InputError(
            f"kubernetes.tracking_uri: missing in cluster.yaml: what {spec.name} learns would end with its pod; write "
            "an MLflow server's address, or kubernetes.model_cache, the name of a ReadWriteMany claim"
        )
    if reference.kind == "registry" and not kept:
        raise InputError(
            f"kubernetes.tracking_uri: missing in cluster.yaml: no pod can look up {spec.model}; write an MLflow "
            "server's address, or kubernetes.model_cache, the name of a ReadWriteMany claim"
        )


def _folder(key: str, text: str, kube: Kubernetes, others: str) -> None:
    inside = text.startswith(f"{HOME}/") and ".." not in text.split("/")
    if inside and kube.model_cache:
        return
    if inside:
        raise InputError(
            f"{key}: {text!r} is in the model cache, and cluster.yaml names none; set kubernetes.model_cache"
        )
    raise InputError(
        f"{key}: {text!r} is on this machine, and no pod sees it; write {others}, or a path under {HOME}, where pods "
        "have kubernetes.model_cache of cluster.yaml"
    )
