"""A roll-out as it stands in the gateway's configuration, under `rollout` of its model: what outlives everybody.

    {id, application, version, previous, told, wanted, keys, began, state, reason, ended, summary, home, tracking_uri}

`application` is there as long as the new version has one of its own; once it takes over, `wanted` is what Serve is told
of the model, and `told` what the gateway is. Its way: running > promoting > promoted, or > rolled back; the last two
are the ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RUNNING, PROMOTING, PROMOTED, ROLLED_BACK = "running", "promoting", "promoted", "rolled back"
ENDS = (PROMOTED, ROLLED_BACK)
# Behind a model's name: its new version's application. No model can have such a name: names have no underscore.
NEXT = "_next"
INNER = ("told", "wanted", "tracking_uri")  # what only the end of a roll-out needs, and nobody is shown


def of(model: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The roll-out of a model in the gateway's configuration, be it over or not."""
    return (model or {}).get("rollout")


def going_on(model: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The roll-out of a model, where there is something left of it to do."""
    found = of(model)
    return found if found is not None and "application" in found else None
