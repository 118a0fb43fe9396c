"""How a new version takes the place of the one that serves: some of the requests first, and back by itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.spec.section import Section

Share = Annotated[float, Field(ge=0, le=1)]


class Rollout(Section):
    """A new version beside the old one, judged over live requests."""

    canary: Share = 0.1
    """Share of the clients that the new version answers. A client, known by the header x-shoal-session or else its key,
    stays with its version; raising the share only moves clients to the new one."""
    shadow: Share = 0.0
    """Share of the old version's requests that the new one answers as well, after the client has its answer: for
    `min_agreement`, and without a client that depends on it."""
    for_s: Annotated[float, Field(gt=0, le=2_592_000)] = 600
    """How long both are looked at before the new one takes over, in seconds."""
    min_requests: Annotated[int, Field(ge=1)] = 100
    """Requests that the new one must have answered before it takes over, canary and shadow together."""
    max_error_rate: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of its requests that may fail where the old version's do not; more of them roll it back. Their clients get
    the old version's answer."""
    max_latency_ratio: Annotated[float, Field(gt=0)] = 1.5
    """How much slower its 95th percentile may be than the old one's; 5 ms more are never held against it."""
    min_agreement: Share = 0.95
    """Share of the shadowed requests on which both must agree: the same label, number or text."""
    promote: Literal["gate", "hand"] = "gate"
    """gate: it takes over by itself when nothing speaks against it; hand: it waits for `shoal rollout promote`."""

    @model_validator(mode="after")
    def _something_is_tried(self) -> Rollout:
        if self.canary == 0 and self.shadow == 0:
            raise ValueError("canary: 0 and shadow: 0: the new version would never be asked; write one of them")
        return self
