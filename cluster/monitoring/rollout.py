"""Recording of roll-outs: by version at the gateways, what was decided at the Keeper.

A version is a label only while it is rolled out: a series a version and kind, not one a request.
"""

from __future__ import annotations

from collections import Counter

from cluster.monitoring import names
from cluster.monitoring.record import instrument


class Versions:
    """Requests of the versions in a roll-out. A request only adds to what lies here until `flush`."""

    def __init__(self) -> None:
        self._ended: list[tuple[str, str, str, float | None, bool]] = []

    def note(self, model: str, version: str, kind: str, seconds: float | None, *, failed: bool) -> None:
        """One request: `kind` is old, canary or shadow; without `seconds` where it never ended."""
        self._ended.append((model, version, kind, seconds, failed))

    def flush(self) -> None:
        """Hand over what there is to Ray."""
        ended, self._ended = self._ended, []
        counts = Counter((model, version, kind, failed) for model, version, kind, _, failed in ended)
        for (model, version, kind, failed), count in counts.items():
            labels = {"model": model, "version": version, "kind": kind, "failed": str(failed).lower()}
            instrument(names.ROLLOUT_REQUESTS).inc(count, labels)
        for model, version, _, seconds, _ in ended:
            if seconds is not None:
                instrument(names.ROLLOUT_LATENCY).observe(seconds, {"model": model, "version": version})


def weigh(model: str, version: str, weight: float, agreement: float | None) -> None:
    """Tell how much of the requests a new version gets, and how far both agree; again and again, as every gauge."""
    labels = {"model": model, "version": version}
    instrument(names.ROLLOUT_WEIGHT).set(weight, labels)
    if agreement is not None:
        instrument(names.ROLLOUT_AGREEMENT).set(agreement, labels)


def rolled_back(model: str) -> None:
    """One more."""
    instrument(names.ROLL_BACKS).inc(1, {"model": model})
