"""What is counted of each of the two versions: plain numbers that add up over gateways."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

# Latencies are kept in buckets, each so much wider than the one before: a quantile is right within that.
WIDTH = 1.15
LEAST_S = 0.0005
AGES = 200  # requests under way whose ages are told, at most


def bucket(seconds: float) -> int:
    """The bucket of a latency: number n reaches from `floor(n)` to `floor(n + 1)`."""
    return 0 if seconds <= LEAST_S else int(math.log(seconds / LEAST_S) / math.log(WIDTH)) + 1


def floor(number: int) -> float:
    """Where a bucket begins, in seconds."""
    return 0.0 if number == 0 else LEAST_S * WIDTH ** (number - 1)


class Stats:
    """One version. `requests` are those that say something about it: answered, or failed (`errors`); `slow` latencies
    by bucket of those answered; `ages` of those under way, in seconds; of those shadowed how many were `compared`, and
    on how many of them both `agreed`."""

    def __init__(self, told: Mapping[str, Any] | None = None) -> None:
        told = told or {}
        self.requests: int = told.get("requests", 0)
        self.errors: int = told.get("errors", 0)
        self.compared: int = told.get("compared", 0)
        self.agreed: float = told.get("agreed", 0.0)
        self.latencies: Counter[int] = Counter(dict(told.get("latencies", ())))
        self.ages: list[float] = list(told.get("ages", ()))

    def answered(self, seconds: float) -> None:
        self.requests += 1
        self.latencies[bucket(seconds)] += 1

    def failed(self) -> None:
        self.requests += 1
        self.errors += 1

    def add(self, other: Stats) -> None:
        self.requests += other.requests
        self.errors += other.errors
        self.compared += other.compared
        self.agreed += other.agreed
        self.latencies.update(other.latencies)
        self.ages += other.ages

    def told(self) -> dict[str, Any]:
        """As it goes over the wire; `Stats` makes the same of it again."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "compared": self.compared,
            "agreed": self.agreed,
            "latencies": sorted(self.latencies.items()),
            "ages": self.ages[:AGES],
        }

    def quantile(self, q: float) -> float | None:
        """The upper end of the bucket that holds a quantile of the latencies, in seconds; None where there are none."""
        left = q * self.latencies.total()
        for number, count in sorted(self.latencies.items()):
            left -= count
            if left <= 1e-9:
                return floor(number + 1)
        return None

    def summary(self) -> dict[str, Any]:
        """For people."""
        p50, p95 = self.quantile(0.5), self.quantile(0.95)
        return {
            "requests": self.requests,
            "errors": self.errors,
            "p50_ms": None if p50 is None else round(p50 * 1000, 2),
            "p95_ms": None if p95 is None else round(p95 * 1000, 2),
            "compared": self.compared,
            "agreement": round(self.agreed / self.compared, 4) if self.compared else None,
        }
