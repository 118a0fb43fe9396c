"""A sweep's space against the section it sweeps: every key is there and can be swept, every bound is one it takes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cluster.spec.tune import Tune, Value

# Keys that make no other model, or that the trials' comparison stands on.
_FIXED = {
    "workers": "it does not change the model",
    "max_failures": "it does not change the model",
    "node_pool": "it does not change the model",
    "parallel": "it does not change the model",
    "deepspeed": "it does not change the model",
    "gradient_accumulation_steps": "it does not change the model",
    "checkpoints_per_epoch": "trials are compared at their validations",
    "seed": "it draws the validation rows, which all trials share",
}
# Into a range, away from its ends and from whole numbers.
_GOLDEN = 0.6180339887


def check(tune: Tune, train: BaseModel) -> None:
    """Refuse a sweep over `train` that cannot be run. Raises ValueError naming the key, the value and the remedy."""
    if not tune.space and tune.model_fields_set:
        raise ValueError("tune.space: empty; write what to try, e.g. {train.learning_rate: {loguniform: [1e-6, 1e-3]}}")
    for key, tried in tune.space.items():
        where = f"tune.space.{key}"
        if len(tried) != 1:
            kinds = ", ".join(tried) or "nothing"
            raise ValueError(f"{where}: {kinds}: write one of uniform, loguniform, int, logint, choice")
        ((kind, values),) = tried.items()
        _sweepable(type(train), key, where)
        if kind == "choice":
            _choice(values, where)
            probes = list(values)
        else:
            low, high = _bounds(kind, values, where)
            probes = [low, high] if kind in ("int", "logint") else [low, high, low + _GOLDEN * (high - low)]
        for value in probes:
            _takes(train, key, value, kind, where)


def with_values(train: BaseModel, values: Mapping[str, Value]) -> dict[str, Any]:
    """The section as plain values, those of a trial ({train.lora.rank: 8}) put in; a section that was left out
    begins with its defaults."""
    tree = train.model_dump()
    for key, value in values.items():
        _, *parents, last = key.split(".")
        place = tree
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
        place[last] = value
    return tree


def value_of(train: BaseModel, key: str) -> Any:
    """What the section has at a key of a space; None where a section on the way was left out."""
    place: Any = train.model_dump()
    for part in key.split(".")[1:]:
        place = place.get(part) if isinstance(place, dict) else None
    return place


def _sweepable(section: type[BaseModel], key: str, where: str) -> None:
    """Raises ValueError where there is no such key, or it cannot be swept."""
    head, *path = key.split(".")
    if head != "train" or not path:
        hint = f"; write train.{key}" if head in section.model_fields else ""
        raise ValueError(f"{where}: only keys of train can be swept{hint}")
    if path[0] in _FIXED:
        raise ValueError(f"{where}: cannot be swept: {_FIXED[path[0]]}; set train.{path[0]} itself")
    known = "train"
    annotation: Any = section
    for position, part in enumerate(path):
        if get_origin(annotation) is dict:
            if position < len(path) - 1:
                raise ValueError(f"{where}: {known} holds plain values; write {known}.{part}")
            return
        inner = _section(annotation)
        if inner is None:
            raise ValueError(f"{where}: {known} has no keys of its own; write {known}")
        if part not in inner.model_fields:
            near = difflib.get_close_matches(part, inner.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {known}.{near[0]}?" if near else f"{known} has {', '.join(inner.model_fields)}"
            raise ValueError(f"{where}: no such key; {hint}")
        annotation = inner.model_fields[part].annotation
        known = f"{known}.{part}"
    if (inner := _section(annotation)) is not None:
        raise ValueError(f"{where}: a section; sweep its keys, {', '.join(f'{known}.{k}' for k in inner.model_fields)}")
    if get_origin(annotation) is dict:
        raise ValueError(f"{where}: a mapping; sweep what is in it, e.g. {known}.n_estimators")


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section an annotation means, also where it may be left out."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _choice(values: list[Value], where: str) -> None:
    if not values:
        raise ValueError(f"{where}: choice of nothing; write what to choose from, e.g. {{choice: [8, 16]}}")
    if len({repr(value) for value in values}) < len(values):
        raise ValueError(f"{where}: choice: {values}: a value stands twice; keep one")


def _bounds(kind: str, values: list[Value], where: str) -> tuple[float, float]:
    said = f"{where}: {kind}: {values}"
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError(f"{said}: write the least and the greatest number, e.g. {{{kind}: [1, 8]}}")
    low, high = (float(value) for value in values if isinstance(value, int | float))
    if low >= high:
        raise ValueError(
            f"{said}: the least comes first; write [{high:g}, {low:g}]" if low > high else f"{said}: empty"
        )
    if kind in ("loguniform", "logint") and low <= 0:
        raise ValueError(
            f"{said}: a logarithmic range begins above 0; write a small number, or {kind.removeprefix('log')}"
        )
    if kind in ("int", "logint"):
        if low != int(low) or high != int(high):
            raise ValueError(f"{said}: whole numbers only; write uniform for others")
        return int(low), int(high)
    return low, high


def _takes(train: BaseModel, key: str, value: Value, kind: str, where: str) -> None:
    """Build the section with the value: what it refuses there, it would refuse in a trial."""
    try:
        type(train).model_validate(with_values(train, {key: value}))
    except ValidationError as error:
        fault: dict[str, Any] = dict(error.errors()[0])
        message = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
        if kind in ("uniform", "loguniform") and fault["type"] == "int_from_float":
            whole = "int" if kind == "uniform" else "logint"
            raise ValueError(f"{where}: {kind}: {key} takes whole numbers; write {whole}") from None
        shown = f"{value:g}" if isinstance(value, float) else repr(value)
        raise ValueError(f"{where}: {kind}: {shown}: {message[0].lower()}{message[1:]}") from None
