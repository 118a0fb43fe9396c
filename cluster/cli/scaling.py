"""What `shoal status` says of how models scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.connect import Cluster


def joined(served: list[dict[str, Any]], cluster: Cluster) -> list[str]:
    """A line for each endpoint whose number of replicas changes by itself; its row gets the same as `scaling`: None, or
    {wanted, up, held, why, trouble}."""
    from serve.state import state
    from serve.waiting import up

    told, _ = state(cluster) if served else (None, "")
    lines = []
    for row in served:
        known = told["scaling"].get(row["name"]) if told is not None else None
        row["scaling"] = None
        if known is not None:
            shown = {key: known[key] for key in ("wanted", "held", "why", "trouble")}
            row["scaling"] = {**shown, "up": len(up(told, row["name"]))}
            lines.append(words(row["name"], row["scaling"]))
    return lines


def words(name: str, scaling: dict[str, Any]) -> str:
    """`scaling  reviews: 2 wanted, 1 up, 7 requests wait: 9.3 requests in hand, 2 a copy`."""
    wait = f", {scaling['held']} requests wait" if scaling["held"] else ""
    unknown = f"; its metric cannot be read: {scaling['trouble']}" if scaling["trouble"] else ""
    return f"scaling  {name}: {scaling['wanted']} wanted, {scaling['up']} up{wait}: {scaling['why']}{unknown}"
