"""One turn's figures, and the ratio of two servers' with an interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_RESAMPLES = 500


@dataclass
class Round:
    """What one turn gave; times in milliseconds, one value an answer (gaps: one between two tokens' events; late: how
    long after it was due a request was sent)."""

    number: int
    wall_s: float
    cpu_s: dict[str, float] | None
    generator_s: float
    load: float
    began: float
    done_s: np.ndarray
    latency_ms: np.ndarray
    ttft_ms: np.ndarray
    gap_ms: np.ndarray
    late_ms: np.ndarray
    tokens: int
    counted: bool
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> int:
        return self.outcomes["ok"]


def ratios(first: Sequence[Round], second: Sequence[Round], *, streams: bool) -> list[dict[str, Any]]:
    """first / second of each measure, with a 95 % interval: percentile bootstrap over rounds, both sides' turns of a
    round drawn together (Efron and Tibshirani 1993, chapter 13). Without an interval where there are under 3 rounds.
    """
    chosen: list[tuple[str, str, Any]] = []
    if streams:
        chosen.append(("tokens_per_s", "more", lambda rows: _rate(rows, "tokens")))
    chosen.append(("requests_per_s", "more", lambda rows: _rate(rows, "ok")))
    chosen += [(f"latency_{name}", "less", _quantile("latency_ms", share)) for name, share in QUANTILES.items()]
    if streams:
        chosen += [(f"ttft_{name}", "less", _quantile("ttft_ms", QUANTILES[name])) for name in ("p50", "p99")]
        chosen += [("gap_p50", "less", _quantile("gap_ms", 0.5))]
    if all(one.cpu_s is not None for one in (*first, *second)):
        chosen.append(("cpu_ms", "less", lambda rows: _cpu(rows, streams=streams)))

    generator = np.random.default_rng(0)
    count = len(first)
    draws = generator.integers(0, count, (_RESAMPLES, count)) if count >= 3 else np.empty((0, count), int)
    result = []
    for name, better, measure in chosen:
        value = _divide(measure(first), measure(second))
        if value is None:
            continue
        drawn = [_divide(measure([first[i] for i in draw]), measure([second[i] for i in draw])) for draw in draws]
        sound = [one for one in drawn if one is not None]
        low, high = (float(x) for x in np.quantile(sound, (0.025, 0.975))) if sound else (None, None)
        result.append({"measure": name, "better": better, "ratio": value, "low": low, "high": high})
    return [{key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()} for row in result]


def _rate(rows: Sequence[Round], what: str) -> float:
    return sum(getattr(one, what) for one in rows) / sum(one.wall_s for one in rows)


def _quantile(which: str, share: float) -> Any:
    def measure(rows: Sequence[Round]) -> float:
        values = np.concatenate([getattr(one, which) for one in rows])
        return float(np.quantile(values, share)) if len(values) else 0.0

    return measure


def _cpu(rows: Sequence[Round], *, streams: bool) -> float:
    count = sum(one.tokens if streams else one.ok for one in rows)
    return 1000 * sum(sum((one.cpu_s or {}).values()) for one in rows) / count if count else 0.0


def _divide(above: float, below: float) -> float | None:
    return above / below if above and below else None
