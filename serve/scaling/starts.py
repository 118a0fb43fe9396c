"""How long copies take to start, as was measured, and so how long one that is starting will still take."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

UNKNOWN_S = 15.0  # where none was measured yet
_KEPT = 5


@dataclass
class Starts:
    """One application's. Times are in seconds since 1970: replicas tell theirs."""

    took: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    since: float | None = None  # when more copies were wanted than are up

    def usual(self) -> float:
        """Seconds from the decision to a copy that answers: the median of the last ones."""
        return median(self.took) if self.took else UNKNOWN_S

    def measured(self, seconds: float) -> None:
        if 0 < seconds < 3600:
            self.took.append(seconds)

    def left(self, now: float) -> int:
        """Whole seconds until the next copy is up: the rest of the usual time. One that is overdue takes as long again
        as it is late, a minute at most."""
        usual = self.usual()
        if self.since is None:
            return max(1, math.ceil(usual))
        rest = usual - (now - self.since)
        return max(1, math.ceil(rest if rest > 0 else min(60.0, -rest)))
