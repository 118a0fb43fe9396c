"""Where a model goes that shares copies with others: into their application, beside whatever is there already."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.serving import check, shared_application, shared_model, shared_name
from cluster.settings import Shared, settings
from cluster.spec import Spec
from serve.applications import Change
from serve.language import Place
from serve.sizes import weight_of

if TYPE_CHECKING:
    from cluster.connect import Cluster


def copies(spec: Spec) -> Shared:
    """What cluster.yaml has under the name that the file gives. Raises InputError with the names that there are."""
    known = settings().shared
    if spec.serve.shared not in known:
        there = f"it has {', '.join(known)}" if known else f"write shared: {{{spec.serve.shared}: {{memory_mb: 2048}}}}"
        raise InputError(f"serve.shared: {spec.serve.shared}: cluster.yaml has no such name under `shared`; {there}")
    return known[spec.serve.shared]


def place(spec: Spec, change: Change, described: Mapping[str, Any], *, model_uri: str, folder: Path) -> Place:
    """Its place among the models that share. Raises InputError where it is larger than the memory of a copy."""
    check(spec)
    assert spec.serve.shared is not None
    shared = copies(spec)
    device = "cuda" if shared.num_gpus > 0 else "cpu"
    need = weight_of(folder, device=device, dtype=spec.serve.dtype) / 2**20
    if need > shared.memory_mb:
        raise InputError(
            f"serve.shared: {spec.serve.shared}: {spec.name} takes {need:.0f} MiB of memory, and a copy has "
            f"{shared.memory_mb:g} for all its models; raise shared.{spec.serve.shared}.memory_mb in cluster.yaml, or "
            "leave serve.shared out"
        )
    application = shared_name(spec.serve.shared)
    there = models(change.before.get(application))
    model = shared_model(
        spec, model_uri=model_uri, folder=str(folder), attempt=there.get(spec.name, {}).get("attempt", 0)
    )
    wanted = shared_application(
        spec.serve.shared, shared, {**there, spec.name: model}, attempt=change.attempt(application)
    )
    told = {spec.name: {**described, "application": application, "route": f"/{spec.name}"}}
    return Place(application, spec.name, wanted, told, key_of(spec.name, model))


def models(application: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The models in an application's configuration that share its copies; none in any other's."""
    if not application or application["import_path"] != "serve.shared:build":
        return {}
    return application["deployments"][0]["user_config"]["models"]


def drop(applications: dict[str, dict[str, Any]], name: str, *, but: str = "") -> None:
    """Take a model out of every set of copies that it shares, except the application `but`; copies without a model go.
    Changes `applications`."""
    for key, application in list(applications.items()):
        if key == but or name not in models(application):
            continue
        wanted = copy.deepcopy(application)
        left = wanted["deployments"][0]["user_config"]["models"]
        del left[name]
        if left:
            applications[key] = wanted
        else:
            del applications[key]


def take_out(cluster: Cluster, place: Place, before: dict[str, Any] | None) -> None:
    """After a failure: the copies' configuration says of this model what it said in `before`, and keeps whatever else
    has come into them meanwhile."""
    with Change(cluster) as change:
        now = models(change.before.get(place.application)).get(place.name)
        old = models(before).get(place.name)
        if now != models(place.wanted)[place.name]:
            return  # another process has changed it since
        if old is None:
            drop(change.applications, place.name)
        else:
            wanted = copy.deepcopy(change.before[place.application])
            models(wanted)[place.name] = old
            change.applications[place.application] = wanted


def key_of(name: str, model: Mapping[str, Any]) -> str:
    """What tells a model from another of the same name, and from itself loaded anew."""
    return "|".join(str(part) for part in (name, *(model[key] for key in ("version", "attempt", "dtype", "folder"))))
