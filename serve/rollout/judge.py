"""Whether a new version goes on, takes over or goes back: a pure function of what was counted.

A roll-back takes evidence, not a ratio of small numbers: a one-sided binomial test at `ALPHA`, which is small because
it is asked again and again while requests come. A promotion takes enough requests whose figures are within the limits
as they stand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from serve.rollout.stats import Stats, floor

if TYPE_CHECKING:
    from cluster.spec.rollout import Rollout

ALPHA = 0.001
LEAST_REQUESTS = 10  # before errors are judged
LEAST_LATENCIES = 20  # of each version, before latency is
LEAST_COMPARED = 20  # before agreement is, and before a promotion where there is a shadow
SLACK_S = 0.005  # more than the old version's that is never held against the new one
_Z = 1.645  # of a one-sided bound of 95 %


@dataclass(frozen=True)
class Verdict:
    """What to do, and why, in words for a person."""

    action: Literal["keep", "promote", "roll back"]
    reason: str


def judge(old: Stats, new: Stats, keys: Rollout, elapsed_s: float) -> Verdict:
    """`elapsed_s`: since the new version was given its first request."""
    for against in (_errors(old, new, keys), _latency(old, new, keys), _agreement(new, keys)):
        if against:
            return Verdict("roll back", against)
    if doubt := _doubt(old, new, keys, elapsed_s):
        return Verdict("keep", doubt)
    if keys.promote == "hand":
        return Verdict("keep", "nothing speaks against it; `shoal rollout promote` lets it take over")
    return Verdict("promote", f"{new.requests} requests in {elapsed_s:.0f} s, and nothing speaks against it")


def _errors(old: Stats, new: Stats, keys: Rollout) -> str:
    """More fail than may, and than of the old version can be expected to."""
    if new.requests < LEAST_REQUESTS:
        return ""
    allowed = keys.max_error_rate
    if old.requests >= LEAST_REQUESTS:
        allowed = max(allowed, upper(old.errors / old.requests, old.requests))
    if at_least(new.errors, new.requests, allowed) >= ALPHA:
        return ""
    return (
        f"{new.errors} of {new.requests} requests failed (serve.rollout.max_error_rate: {keys.max_error_rate:g}; the "
        f"old version: {old.errors} of {old.requests})"
    )


def _latency(old: Stats, new: Stats, keys: Rollout) -> str:
    """More than one in twenty take longer than the old version's 95th percentile allows. What is under way and has
    taken that long already counts: a version that hangs has answered nothing."""
    most = _most_s(old, keys)
    if most is None:
        return ""
    slow = sum(count for number, count in new.latencies.items() if floor(number) >= most)
    slow_ages = sum(age >= most for age in new.ages)
    total = new.latencies.total() + slow_ages
    if total < LEAST_LATENCIES or at_least(slow + slow_ages, total, 0.05) >= ALPHA:
        return ""
    return (
        f"{slow + slow_ages} of {total} requests took longer than {most * 1000:.0f} ms (p95 {_ms(new)}, the old "
        f"version's {_ms(old)}; serve.rollout.max_latency_ratio: {keys.max_latency_ratio:g})"
    )


def _agreement(new: Stats, keys: Rollout) -> str:
    if new.compared < LEAST_COMPARED:
        return ""
    # Of an answer that agrees in part the part counts, rounded in favour of the new version.
    differing = math.floor(new.compared - new.agreed + 1e-6)
    if at_least(differing, new.compared, 1 - keys.min_agreement) >= ALPHA:
        return ""
    return (
        f"both versions agree on {new.agreed / new.compared:.3f} of {new.compared} shadowed requests "
        f"(serve.rollout.min_agreement: {keys.min_agreement:g})"
    )


def _doubt(old: Stats, new: Stats, keys: Rollout, elapsed_s: float) -> str:
    """Why it is too early to promote; empty where it is not."""
    if elapsed_s < keys.for_s:
        return f"{elapsed_s:.0f} of {keys.for_s:g} s"
    if new.requests < keys.min_requests:
        return f"{new.requests} of {keys.min_requests} requests (serve.rollout.min_requests)"
    if keys.shadow and new.compared < LEAST_COMPARED:
        return f"{new.compared} of {LEAST_COMPARED} shadowed requests compared"
    allowed = max(keys.max_error_rate, old.errors / old.requests if old.requests else 0.0)
    if new.errors > allowed * new.requests:
        return f"{new.errors} of {new.requests} requests failed, which may be chance"
    most, p95 = _most_s(old, keys), new.quantile(0.95)
    if most is not None and p95 is not None and p95 > most:
        return f"p95 is {_ms(new)}, the old version's {_ms(old)}, which may be chance"
    if new.compared and new.agreed < keys.min_agreement * new.compared:
        return f"both versions agree on {new.agreed / new.compared:.3f} of {new.compared}, which may be chance"
    return ""


def _most_s(old: Stats, keys: Rollout) -> float | None:
    """What the new version's 95th percentile may be, in seconds: from the upper bound of where the old one's lies.
    None where too little is known of it."""
    count = old.latencies.total()
    if count < LEAST_LATENCIES:
        return None
    p95 = old.quantile(min(1.0, 0.95 + _Z * math.sqrt(0.95 * 0.05 / count)))
    assert p95 is not None
    return max(p95 * keys.max_latency_ratio, p95 + SLACK_S)


def _ms(stats: Stats) -> str:
    p95 = stats.quantile(0.95)
    return "unknown" if p95 is None else f"{p95 * 1000:.0f} ms"


def upper(rate: float, count: int) -> float:
    """One-sided upper bound of a rate seen over so many, at 95 % (Wilson 1927, doi 10.2307/2276774)."""
    z2 = _Z * _Z
    middle = rate + z2 / (2 * count)
    spread = _Z * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count * count))
    return min(1.0, (middle + spread) / (1 + z2 / count))


def at_least(hits: int, count: int, rate: float) -> float:
    """The probability of so many hits or more of `count`, each with probability `rate`: the tail of a binomial."""
    if hits <= 0:
        return 1.0
    if rate <= 0:
        return 0.0
    if rate >= 1 or hits > count:
        return 1.0 if hits <= count else 0.0
    if hits <= count * rate:
        return 1.0  # no evidence at all; the exact value is at least about a half
    choose = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    term = math.exp(choose + hits * math.log(rate) + (count - hits) * math.log1p(-rate))
    total = 0.0
    # Beyond the mean each term is smaller than the one before.
    for k in range(hits, count + 1):
        total += term
        if term < total * 1e-12:
            break
        term *= (count - k) / (k + 1) * rate / (1 - rate)
    return min(1.0, total)
