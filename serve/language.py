"""Where a language model of a file goes: onto an engine of its own, as a whole model or as an adapter beside its base,
or as an adapter onto the engine of another file that is being served.

Everything that can be wrong with an adapter is found here, before anything that is served is touched.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import engine, weights
from cluster.errors import InputError, NotFound
from cluster.serving import model_application
from cluster.spec import Spec
from serve import adapters

if TYPE_CHECKING:
    from serve.applications import Change


@dataclass(frozen=True)
class Source:
    """What a file's model is made of: a whole model, and maybe an adapter of it."""

    base: Path
    base_version: str
    adapter: adapters.Adapter | None = None
    entry: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where it goes: the application and its configuration, the name that clients write, and what the gateway is to be
    told of names that come (`told`) or go (None)."""

    application: str
    name: str
    wanted: dict[str, Any]
    told: Mapping[str, dict[str, Any] | None]
    tag: str = ""


def source(spec: Spec, *, model_uri: str, folder: Path) -> Source:
    """Read what is in `folder`, and find the base of an adapter. Raises InputError where an adapter is not sound."""
    if not adapters.is_adapter(folder):
        if spec.serve.llm.onto:
            raise InputError(
                f"serve.llm.onto: {spec.serve.llm.onto}: {model_uri} is a whole model, and only adapters go onto "
                "another's engine; train one (train.lora), or leave onto out"
            )
        return Source(folder, model_uri)
    base_version, base = _base(spec, model_uri)
    checked = adapters.inspect(folder, max_rank=max(_RANKS))
    adapters.check_fit(checked, base)
    if checked.base_digest and checked.base_digest != weights.digest(base):
        raise InputError(
            f"{model_uri}: this adapter was trained from other weights than those that {base_version} names now; "
            "give back the model it was trained from, or train again"
        )
    # A version of the registry stays as it is; a folder is known by what is in it.
    tag = "" if model_uri.startswith("models:/") else weights.digest(folder)[:8]
    entry = engine.adapter(version=model_uri, folder=str(folder), tag=tag)
    return Source(base, base_version, checked, entry)


def place(spec: Spec, found: Source, change: Change, described: Mapping[str, Any]) -> Place:
    """Where it goes among what is served now. Raises InputError, NotFound where it cannot."""
    if spec.serve.llm.onto:
        return _onto(spec, spec.serve.llm.onto, found, change, described)
    name = spec.name
    before = change.before.get(name)
    others = {key: one for key, one in loaded(before).items() if key != name}
    if others and before is not None and before["args"]["folder"] != str(found.base):
        raise InputError(
            f"{name}: {', '.join(others)} would lose the model that they were trained from; take them off first "
            f"(shoal down {next(iter(others))})"
        )
    if found.adapter is not None:
        _check_room(found.adapter, spec.serve.llm.model_dump())
    wanted = model_application(
        spec,
        model_uri=found.base_version,
        folder=str(found.base),
        attempt=change.attempt(name),
        adapters={**others, **({name: found.entry} if found.adapter is not None else {})},
    )
    if found.adapter is None:
        return Place(name, name, wanted, {name: dict(described), f"{name}:base": None})
    base = {**described, "version": found.base_version, "application": name}
    told = {name: {**described, "parent": f"{name}:base"}, f"{name}:base": base}
    return Place(name, name, wanted, told, found.entry["tag"])


def loaded(application: Mapping[str, Any] | None) -> dict[str, dict[str, str]]:
    """The adapters in an application's configuration, by the name they answer to; none in any other model's."""
    if not application or application["args"].get("task") != engine.TASK:
        return {}
    return application["deployments"][0]["user_config"]["adapters"]


def without(application: dict[str, Any], name: str) -> dict[str, Any]:
    """An application's configuration with one adapter less."""
    wanted = copy.deepcopy(application)
    wanted["deployments"][0]["user_config"]["adapters"].pop(name, None)
    return wanted


def dated(told: dict[str, Any], known: Mapping[str, Any] | None, *, max_model_len: int) -> dict[str, Any]:
    """What the gateway is told of one name, with what OpenAI's list of models has beside it: since when, how long."""
    known = known or {}
    created = known.get("created") if known.get("version") == told["version"] else None
    return {**told, "created": created or int(time.time()), "max_model_len": max_model_len}


def _onto(spec: Spec, other: str, found: Source, change: Change, described: Mapping[str, Any]) -> Place:
    assert found.adapter is not None
    application = change.before.get(other)
    if application is None or application["args"].get("task") != engine.TASK:
        served = [key for key, one in change.before.items() if one["args"].get("task") == engine.TASK]
        raise NotFound(
            f"serve.llm.onto: no language model {other!r} is served; "
            f"{'these are: ' + ', '.join(served) if served else 'serve one first, or leave onto out'}"
        )
    args = application["args"]
    if Path(args["folder"]) != found.base and weights.digest(Path(args["folder"])) != weights.digest(found.base):
        raise InputError(
            f"serve.llm.onto: {other} serves {args['version']}, and this adapter comes from {found.base_version}, "
            "which holds other weights; put it onto an engine with its own base"
        )
    _check_room(found.adapter, args["engine"])
    name = engine.served_name(spec)
    wanted = copy.deepcopy(application)
    wanted["deployments"][0]["user_config"]["adapters"][name] = found.entry
    parent = f"{other}:base" if other in loaded(application) else other
    return Place(other, name, wanted, {name: {**described, "application": other, "parent": parent}}, found.entry["tag"])


def _base(spec: Spec, model_uri: str) -> tuple[str, Path]:
    """What an adapter was trained from: the file's `model`, or what the registry says where that is the adapter."""
    from cluster.registry import Registry, resolve
    from cluster.spec import model_ref

    reference = spec.model_ref()
    registry = Registry()
    if spec.data.train is None:
        assert reference.kind == "registry"
        version = registry.version(reference.name, alias=reference.alias, version=reference.version)
        text = version.tags.get("shoal.base_model", "")
        if not text:
            raise InputError(f"model: {model_uri} is an adapter, and the registry does not say of which model")
        reference = model_ref(text, base=spec.base)
    if reference.kind == "registry":
        version = registry.version(reference.name, alias=reference.alias, version=reference.version)
        return version.uri, version.folder
    return reference.text, resolve(reference, registry)


def _check_room(adapter: adapters.Adapter, keys: Mapping[str, Any]) -> None:
    """Whether an engine of these keys takes the adapter. Raises InputError."""
    if keys["max_loras"] == 0:
        raise InputError(
            f"serve.llm.max_loras: 0: {adapter.folder} is an adapter, and its engine takes none; write 4 in the file "
            "of that engine (it starts again)"
        )
    if adapter.rank > (most := keys["max_lora_rank"]):
        raise InputError(
            f"{adapter.folder}: an adapter of rank {adapter.rank}, and its engine takes {most}; raise "
            "serve.llm.max_lora_rank in the file of the engine (it starts again), or lower train.lora.rank"
        )


_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
