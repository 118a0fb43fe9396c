"""How a model is shared among workers, and which of its weights learn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.section import Fraction, Section


class DeepSpeed(Section):
    """DeepSpeed's ZeRO (Rajbhandari et al., arXiv 1910.02054)."""

    zero_stage: Literal[1, 2, 3] = 2
    """1 shards the optimizer's state, 2 the gradients too, 3 the parameters too."""
    offload: Literal["none", "cpu"] = "none"
    """cpu: the optimizer's state and step stay in the host's memory (parameters too at stage 3)."""


class Lora(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the two matrices beside each adapted weight."""
    alpha: Annotated[float, Field(gt=0, le=10_000)] = 16
    """The adapter's product is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Share of an adapter's inputs dropped while training."""
    target_modules: list[str] = []
    """Names of the linear modules to adapt, e.g. [q_proj, v_proj]. Left out: every linear module but the head."""
