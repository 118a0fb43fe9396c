"""Scaling in the metrics: the Keeper tells of every application, a few times a second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cluster.monitoring import names
from cluster.monitoring.record import instrument
from serve.scaling.parts import spans

if TYPE_CHECKING:
    from serve.scaling.scaler import Copy, Scaler


class Report:
    """All methods belong to one event loop."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def tell(self, scaler: Scaler, copies: Iterable[Copy], held: Mapping[str, int]) -> None:
        """How many replicas each application should have, and has, and how many requests wait for one."""
        up: dict[str, int] = {}
        for copy in copies:
            up[copy.application] = up.get(copy.application, 0) + 1
        wanted = scaler.wanted()
        present = {*up, *wanted, *held}
        # One that is gone is told of as nothing once, and then no more.
        for name in present | self._known:
            labels = {"model": name}
            instrument(names.REPLICAS_UP).set(up.get(name, 0), labels)
            instrument(names.REPLICAS_WANTED).set(wanted.get(name, up.get(name, 0)), labels)
            instrument(names.HELD).set(held.get(name, 0), labels)
        self._known = present

    def started(self, application: str, parts: Mapping[str, float], decided: float | None) -> None:
        """A replica came up."""
        for part, seconds in spans(dict(parts), decided).items():
            instrument(names.START).observe(seconds, {"model": application, "part": part})
