"""Copies that many small models share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.spec.section import Section


class Shared(Section):
    """Copies in which models live side by side: each is loaded when it is first asked for, and let go, least recently
    used first, when others need its memory. A file joins by `serve: {shared: NAME}`."""

    memory_mb: Annotated[float, Field(gt=0, le=10_000_000)] = 2048
    """Memory for the weights of the models in a copy, in MiB. A copy itself takes about 600 more."""
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Copies. Each has whatever models were asked for there; requests go where a model is loaded already."""
    num_cpus: Annotated[float, Field(ge=0, le=4096)] = 1
    """CPU cores a copy."""
    num_gpus: Annotated[float, Field(ge=0, le=4096)] = 0
    """GPUs a copy; a fraction shares one."""
    max_ongoing_requests: Annotated[int, Field(ge=1, le=100_000)] = 320
    """Requests a copy takes at a time, for all its models together."""
