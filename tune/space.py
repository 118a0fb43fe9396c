"""A sweep's space as Optuna's distributions, and a trial's values back in the file they came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cluster.spec import Spec
from cluster.spec.space import value_of, with_values
from cluster.spec.tune import Space, Value


def distributions(space: Space) -> dict[str, Any]:
    """Key to Optuna's distribution; both ends of a range can be drawn."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, Any] = {}
    for key, tried in space.items():
        ((kind, values),) = tried.items()
        ends: list[Any] = values
        match kind:
            case "choice":
                made[key] = CategoricalDistribution(values)
            case "uniform" | "loguniform":
                made[key] = FloatDistribution(float(ends[0]), float(ends[1]), log=kind == "loguniform")
            case "int" | "logint":
                made[key] = IntDistribution(int(ends[0]), int(ends[1]), log=kind == "logint")
    return made


def tried(spec: Spec, values: Mapping[str, Value]) -> Spec:
    """The file with a trial's values in it. Raises pydantic's ValidationError where they don't go together."""
    section = type(spec.train).model_validate(with_values(spec.train, values))
    return spec.model_copy(update={"train": section})


def own(spec: Spec) -> dict[str, Value] | None:
    """What the file itself says at the keys of its space; None where that lies outside of it."""
    values = {key: value_of(spec.train, key) for key in spec.tune.space}
    for key, found in spec.tune.space.items():
        ((kind, bounds),) = found.items()
        value, ends = values[key], list[Any](bounds)
        if kind == "choice":
            # 1 and true are equal to Python, and not to a reader.
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in bounds):
                return None
        elif isinstance(value, bool) or not isinstance(value, int | float) or not ends[0] <= value <= ends[1]:
            return None
    return values


def told(values: Mapping[str, Value]) -> str:
    """Values as they are written after a file on the command line: train.learning_rate=0.00031 train.batch_size=16."""
    return " ".join(f"{key}={_yaml(value)}" for key, value in values.items())


def short(values: Mapping[str, Value]) -> str:
    """The same for a person: learning_rate 0.00031, batch_size 16."""
    said = {key: f"{value:.3g}" if isinstance(value, float) else _yaml(value) for key, value in values.items()}
    return ", ".join(f"{key.removeprefix('train.')} {value}" for key, value in said.items())


def _yaml(value: Value) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
