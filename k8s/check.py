"""Strict checks of manifests, before anything is sent: Kubernetes' own schemas, KubeRay's CRDs, its operator's rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from k8s import rules, schema

KUBERNETES = "1.37"  # the newest that kubernetes-validate knows of
CRDS = "SHOAL_KUBERAY_CRDS"  # the variable that names a folder of KubeRay's CRDs as YAML


def check(manifests: Sequence[dict[str, Any]], crds: Mapping[str, Any] | None) -> None:
    """Raises InputError with every fault of the manifests; `crds` maps a kind to its CRD, None where there are none."""
    found = [
        f"{manifest['kind']} {manifest['metadata'].get('name')}: {where or 'the resource'}: {what}"
        for manifest in manifests
        for where, what in faults(manifest, crds)
    ]
    if found:
        raise InputError("\n".join(dict.fromkeys(found)))


def faults(manifest: dict[str, Any], crds: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Every fault of one manifest, as its path and what is wrong."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    if group != "ray.io":
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
        broken = list(schema.faults(schema.of_resource(crds[manifest["kind"]], version), manifest))
        yield from broken
        if broken:
            return  # its rules are about resources of this shape
    yield from rules.faults(manifest)


def read_crds(folder: str) -> dict[str, Any]:
    """KubeRay's CRDs from a folder of YAML files, by kind. Raises InputError where there are none."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Any] = {}
    for path in sorted(Path(folder).glob("*.yaml")):
        try:
            crd = yaml.load(path.read_bytes(), Loader=loader)  # noqa: S506 - a safe loader, the faster one where it is
            found[crd["spec"]["names"]["kind"]] = crd
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise InputError(f"{path}: no CustomResourceDefinition: {type(error).__name__}; see {CRDS}") from None
    if not found:
        raise InputError(f"{CRDS}: {folder!r} has no .yaml files; name the folder of KubeRay's CRDs, or unset it")
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
