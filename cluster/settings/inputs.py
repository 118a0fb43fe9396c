"""What a request may bring, besides its size (http.max_body_mb)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.spec.section import Section


class Inputs(Section):
    """Limits on what requests bring."""

    max_pixels: Annotated[int, Field(ge=1, le=89_000_000)] = 50_000_000
    """Pictures with more pixels (width x height) are answered 413, by their header, before one is unpacked."""
