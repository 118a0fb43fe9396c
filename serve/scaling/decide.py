"""How many copies a model should have: a function of what is seen, the file's keys and a small state. No clock, no I/O.

Up: as soon as more have been wanted for `upscale_delay_s`, to twice as many as are up or to four, whichever is more,
and further when those are up: a thousand requests that come at once start four copies, not sixty. Down: when fewer
have been enough for all of `downscale_delay_s`, to half at most, and then the delay begins again. Both as in the
Kubernetes HorizontalPodAutoscaler's algorithm, its tolerance of a tenth included. To zero only after `idle_s` without a
request, and back at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TOLERANCE = 0.1
_AT_ONCE = 4  # copies that may be started together, however few are up
_STRAIN_S = 1800.0  # for how long it is known how much was too much for a copy


@dataclass(frozen=True)
class Keys:
    """What the file says; see cluster.spec.scaling. `target` is of `metric`, a copy."""

    min_replicas: int
    max_replicas: int
    metric: str
    target: float
    upscale_delay_s: float
    downscale_delay_s: float
    idle_s: float

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Keys:
        return cls(**{name: told[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Seen:
    """A model at one time.

    `ongoing`: requests in hand and held, on average since they were last counted; `held`: those of them that wait for a
    copy now; `arrived`: all that ever came; `up`: copies that answer; `value`: the metric, where it is not ongoing
    (queue_time: seconds, cpu and gpu: a share of what the copies have, prometheus: the query's value), None where it is
    not known; `least`: what the schedule wants; `untried`: no copy of this version was ever up.
    """

    now: float
    ongoing: float = 0.0
    held: int = 0
    arrived: float = 0.0
    up: int = 0
    value: float | None = None
    least: int = 0
    untried: bool = False


@dataclass
class State:
    """What has to be remembered between decisions: `wanted` and why it is that; the rest is for `decide` alone."""

    wanted: int
    why: str = "as Serve has it"
    busy_at: float | None = None
    arrived: float = 0.0
    above_since: float | None = None
    calm_since: float | None = None
    recent: deque[tuple[float, int]] = field(default_factory=deque)
    strained: tuple[float, float] | None = None  # requests a copy that were too many, and when


def decide(keys: Keys, seen: Seen, state: State) -> bool:
    """Set `state.wanted` and `state.why`; whether the number changed. Called again and again, a few times a second."""
    floor, why_floor = _floor(keys, seen, state)
    if floor == 0:
        # No request for idle_s says more than any average: all that are left end.
        return _set(state, 0, f"no request for {keys.idle_s:g} s")
    desired, why = _desired(keys, seen, state)
    if desired < floor:
        desired, why = floor, why_floor
    if desired > keys.max_replicas:
        desired, why = keys.max_replicas, f"{why}; no more than serve.max_replicas"

    if desired > state.wanted:
        state.calm_since = None
        if state.above_since is None:
            state.above_since = seen.now
        bound = max(2 * seen.up, _AT_ONCE, floor)
        urgent = state.wanted < floor  # the schedule and the file's least are no matter of load
        if urgent or state.wanted == 0 or seen.now - state.above_since >= keys.upscale_delay_s:
            return _set(state, max(state.wanted, min(desired, bound)), why)
        return False
    state.above_since = None
    return _down(keys, seen, state, desired, why, floor)


def _floor(keys: Keys, seen: Seen, state: State) -> tuple[int, str]:
    """The fewest copies there may be now, and why."""
    busy = seen.held > 0 or seen.ongoing > 0.001 or seen.arrived > state.arrived
    state.arrived = seen.arrived
    if busy or seen.untried or (state.busy_at is None and state.wanted > 0):
        state.busy_at = seen.now
    if seen.least > keys.min_replicas:
        return min(seen.least, keys.max_replicas), "serve.autoscale.schedule"
    if keys.min_replicas > 0:
        return keys.min_replicas, "serve.min_replicas"
    if seen.untried:
        return 1, "this version has not been up yet"
    if busy:
        return 1, f"{seen.held} requests wait" if seen.held else "requests come"
    idle = state.busy_at is None or seen.now - state.busy_at > keys.idle_s
    return (0, "") if idle or state.wanted == 0 else (1, f"a request came in the last {keys.idle_s:g} s")


def _desired(keys: Keys, seen: Seen, state: State) -> tuple[int, str]:
    """How many copies the metric alone wants, and why."""
    if keys.metric == "ongoing":
        total, unit = seen.ongoing, "requests in hand"
        text = f"{total:.1f} {unit}, {keys.target:g} a copy"
        return _enough(total, keys.target, state.wanted), text
    if keys.metric == "prometheus":
        if seen.value is None:
            return max(state.wanted, 1), "the query has no value; as it was"
        return _enough(seen.value, keys.target, state.wanted), f"the query gives {seen.value:g}, {keys.target:g} a copy"
    if seen.up == 0 or seen.value is None:
        return max(state.wanted, 1), f"no copy tells of its {keys.metric}; as it was"
    if keys.metric == "queue_time":
        return _by_queue(keys, seen, state)
    text = f"{seen.value:.0%} of {keys.metric} used by {seen.up}, {keys.target:.0%} is aimed at"
    return _enough(seen.value * seen.up, keys.target, state.wanted), text


def _enough(total: float, target: float, wanted: int) -> int:
    """Copies for a total of which one should have `target`; within a tenth above it as many as there are."""
    needed = math.ceil(total / target)
    return wanted if needed > wanted > 0 and total <= target * wanted * (1 + _TOLERANCE) else needed


def _by_queue(keys: Keys, seen: Seen, state: State) -> tuple[int, str]:
    """A queue is no sum that copies share: there is none up to some load, and with more it grows without end. So what a
    copy had in hand when the queue was too long is remembered, and none is taken away that would lead back there."""
    assert seen.value is not None
    text = f"requests wait {seen.value:.2f} s for a pass, {keys.target:g} s is aimed at"
    each = seen.ongoing / seen.up
    if seen.value > keys.target * (1 + _TOLERANCE):
        state.strained = (each, seen.now)
        # One more at least; more where the queue is many times too long.
        return max(seen.up + 1, math.ceil(seen.up * min(seen.value / keys.target, 2))), text
    if seen.value > keys.target / 2 or state.wanted <= 1:
        return max(state.wanted, 1), text
    if state.strained is not None:
        limit, since = state.strained
        if seen.now - since > _STRAIN_S:
            state.strained = None
        elif seen.ongoing / (state.wanted - 1) > 0.8 * limit:
            return state.wanted, f"{text}; with one less each would have what was too much"
    return state.wanted - 1, text


def _down(keys: Keys, seen: Seen, state: State, desired: int, why: str, floor: int) -> bool:
    """Fewer, where the most that was wanted in all of the last `downscale_delay_s` is fewer."""
    recent = state.recent
    while recent and recent[-1][1] <= desired:
        recent.pop()
    recent.append((seen.now, desired))
    while recent[0][0] < seen.now - keys.downscale_delay_s:
        recent.popleft()
    if desired == state.wanted:
        state.calm_since = None
        return False
    if state.calm_since is None:
        state.calm_since = seen.now
    if seen.now - state.calm_since < keys.downscale_delay_s:
        return False
    highest = max(number for _, number in recent)
    if highest >= state.wanted:
        return False
    state.calm_since = None
    return _set(state, max(highest, math.ceil(state.wanted / 2), floor), why)


def _set(state: State, number: int, why: str) -> bool:
    changed = number != state.wanted
    if changed:
        state.wanted, state.why = number, why
        state.above_since = state.calm_since = None
        state.recent.clear()
    return changed
