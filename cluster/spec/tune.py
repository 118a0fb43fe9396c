"""What a sweep tries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.spec.section import Section


class Tune(Section):
    """A sweep over keys of `train`."""

    trials: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Trials in all."""
    space: dict[str, Any] = {}
    """Key to what is tried: {train.learning_rate: {loguniform: [1e-6, 1e-3]}, train.batch_size: {choice: [8, 16]}}."""
    search: Literal["tpe", "random"] = "tpe"
    """Optuna's sampler: tpe learns from finished trials."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha ends trials early that fall behind (Li et al., arXiv 1810.05934)."""
    max_concurrent: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Trials at a time. Left out: as many as the cluster has cores for."""
