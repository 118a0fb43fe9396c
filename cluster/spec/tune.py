"""What a sweep tries, and how long."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator

from cluster.spec.section import Section

Kind = Literal["uniform", "loguniform", "int", "logint", "choice"]
Value = int | float | str | bool | None
"""What a swept key can be. No lists: Optuna stores none."""
Space = dict[str, dict[Kind, list[Value]]]


class Tune(Section):
    """A sweep over keys of `train`."""

    trials: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Trials in all."""
    space: Space = {}
    """Key to what is tried: {train.learning_rate: {loguniform: [1e-6, 1e-3]}, train.batch_size: {choice: [8, 16]}}.
    uniform and loguniform take the least and the greatest number, int and logint whole ones (both are tried), choice a
    list. The file's own values are the first trial where they lie in the space."""
    search: Literal["tpe", "random"] = "tpe"
    """Optuna's sampler: tpe learns from finished trials."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha ends trials early that fall behind (Li et al., arXiv 1810.05934), judged at each of
    train.checkpoints_per_epoch."""
    max_concurrent: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Trials at a time. Left out: as many as the cluster has cores, or GPUs, for."""
    metric: Literal["loss", "accuracy"] = "loss"
    """Which validation metric makes a trial the best."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Seeds the sampler. Left out: train.seed."""

    @field_validator("space", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """Keys with their dots: tune.space.train.epochs={int: [1, 4]} on a command line comes as sections."""
        if not isinstance(value, dict):
            return value
        flat = dict(_flat(value, ""))
        for key, tried in flat.items():
            where = f"tune.space.{key}"
            if not isinstance(tried, dict):
                raise ValueError(f"{where}: {tried!r}: write how to try it, e.g. {{choice: [8, 16]}}")
            for kind, values in tried.items():
                every = values if isinstance(values, list) else []
                if any(isinstance(one, list | dict) for one in every):
                    raise ValueError(f"{where}: {kind}: {values}: numbers, words, true, false and null only")
                if any(isinstance(one, float) and not math.isfinite(one) for one in every):
                    raise ValueError(f"{where}: {kind}: {values}: finite numbers only")
        return flat


def _flat(tree: dict[Any, Any], prefix: str) -> Any:
    for key, value in tree.items():
        nested = isinstance(value, dict) and value and all(isinstance(inner, dict) for inner in value.values())
        if nested and not set(value) & set(get_args(Kind)):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
