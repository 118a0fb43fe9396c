"""Strict checks of manifests before anything is sent: Kubernetes' own schemas, KubeRay's CRDs, its operator's rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from k8s import rules
from k8s.names import CORE, PLURALS
from k8s.schema import Resource

KUBERNETES = "1.37"  # the newest that kubernetes-validate knows of
CRDS = "SHOAL_KUBERAY_CRDS"  # the variable that names a folder of KubeRay's CRDs as YAML


def check(manifests: Sequence[dict[str, Any]], crds: Mapping[str, Resource] | None) -> None:
    """Raises InputError with every fault of the manifests; `crds` maps a kind to its CRD, None where
    it is not at hand."""
    found = [
        f"{manifest['kind']} {manifest['metadata'].get('name')}: {where or 'the resource'}: {what}"
        for manifest in manifests
        for where, what in faults(manifest, crds)
    ]
    if found:
        raise InputError("\n".join(dict.fromkeys(found)))


def faults(manifest: dict[str, Any], crds: Mapping[str, Resource] | None) -> Iterator[tuple[str, str]]:
    """Every fault of one manifest, as its path and what is wrong."""
    if manifest["apiVersion"] != "ray.io/v1":
        yield from _core(manifest, ())
        return
    # What every resource has, by Kubernetes' own schemas: KubeRay's CRDs say less of it, or nothing.
    yield from _core({"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}, ())
    for path, template in _pod_templates(manifest.get("spec", {}), ("spec",)):
        yield from _core({"apiVersion": "v1", "kind": "Pod", **template}, path)
    if crds is not None:
        if manifest["kind"] not in crds:
            yield "kind", f"KubeRay has no {manifest['kind']}; it has {', '.join(sorted(crds))}"
            return
        broken = list(crds[manifest["kind"]].faults(manifest))
        yield from broken
        if broken:
            return  # its rules are about resources of this shape
    yield from rules.faults(manifest)


def read_crds(folder: str, kinds: Iterable[str]) -> dict[str, Resource]:
    """KubeRay's CRDs by kind, from a folder of YAML files as they are published. Raises InputError."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Resource] = {}
    for kind in sorted(set(kinds) - set(CORE)):
        path = Path(folder) / f"ray.io_{PLURALS[kind]}.yaml"
        try:
            text = path.read_bytes()
            found[kind] = Resource(yaml.load(text, Loader=loader))  # noqa: S506 - a safe loader, and the faster one
        except OSError as error:
            raise InputError(
                f"{CRDS}: {path}: {error.strerror}; name the folder of KubeRay's CRDs "
                "(ray-operator/config/crd/bases), or unset it"
            ) from None
        except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{CRDS}: {path}: no CustomResourceDefinition ({type(error).__name__})") from None
    return found


def _core(manifest: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    try:
        import kubernetes_validate
    except ImportError:
        raise InputError("manifests cannot be checked here; pip install 'shoal[k8s]'") from None
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield ".".join([*path, *map(str, error.absolute_path)]), error.message[:300]


def _pod_templates(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every pod's template under a resource's spec, with its path."""
    if isinstance(tree, dict):
        for key, child in tree.items():
            if key in ("template", "submitterPodTemplate") and isinstance(child, dict):
                yield (*path, key), child
            elif key not in ("env", "volumes"):
                yield from _pod_templates(child, (*path, key))
    elif isinstance(tree, list):
        for index, child in enumerate(tree):
            yield from _pod_templates(child, (*path, str(index)))
