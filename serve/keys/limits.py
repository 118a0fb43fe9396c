"""Rate limits and quotas, counted by the library `limits` in a file of this machine or in Redis.

Requests are counted before they run. What is known only afterwards (tokens, pictures, compute seconds) is counted when
the answer ends, and the request after the last is refused: nothing is asked of the store for it on the way in but, once
a second and key, whether another gateway has used it up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from cluster.settings.access import Limit, Limits, secret
from serve.keys.refusals import Limited

TIMEOUT_S = 0.25  # for Redis; a request waits no longer for it
AGAIN_S = 1.0  # after Redis was away it is asked again so long after, by one request
LOOK_S = 1.0  # how old what is known of a quota may be
TOGETHER_S = 0.2  # what is counted afterwards goes to Redis so often
AFTERWARDS = ("tokens", "images", "compute_seconds")
# Counts are whole numbers, so compute seconds are counted in thousandths.
_SCALE = {"compute_seconds": 1000}


class Rule(NamedTuple):
    """A limit on one key or tenant. `item` is the library's; `key` is what it is counted under; `text` what was written
    for it, and where."""

    kind: str
    item: Any
    key: str
    text: str


class Meter:
    """Counts for one gateway. All methods belong to one event loop."""

    def __init__(self, config: Limits, *, file: Path, clock: Callable[[], float] = time.time) -> None:
        self._config, self._file, self._clock = config, file, clock
        self._rules: dict[tuple[str, str], tuple[list[Rule], list[Rule]]] = {}
        self._spent: dict[str, float] = {}  # a rule's key: when its quota opens again
        self._looked: dict[tuple[str, str], float] = {}
        self._charges: dict[Rule, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._away, self._again = False, 0.0
        every = (config.key, config.tenant, *config.tenants.values())
        self.counts = any(limit != Limit() for limit in every)
        self._here: Any = None
        self._redis: Any = None
        self._log = logging.getLogger("shoal")

    async def admit(self, origin: str, tenant: str) -> None:
        """Count one request of a key (the id of its line) and tenant. Raises Limited."""
        if not self.counts:
            return
        before, after = self._of(origin, tenant)
        if after:
            await self._look(origin, tenant, after)
            now = self._clock()
            for rule in after:
                if (opens := self._spent.get(rule.key, 0)) > now:
                    raise _limited(rule, opens - now)
        if len(before) > 1:
            # What one of them refuses is not to use up the others.
            for rule, passes in zip(before, await asyncio.gather(*(self._passes(rule) for rule in before))):
                if not passes:
                    raise _limited(rule, await self._wait(rule))
        for rule in before:
            if not await self._passes(rule, hit=True):
                raise _limited(rule, await self._wait(rule))

    def charge(self, origin: str, tenant: str, used: dict[str, float]) -> None:
        """Count what a request came to: `used` by kind of AFTERWARDS. Returns at once."""
        if not self.counts:
            return
        for rule in self._of(origin, tenant)[1]:
            if amount := round(used.get(rule.kind, 0) * _SCALE.get(rule.kind, 1)):
                self._charges[rule] = self._charges.get(rule, 0) + amount
        if self._charges and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._charge())

    async def close(self) -> None:
        """Count what is still to be counted, and let go of the store."""
        if self._task is not None:
            await self._task
        if self._here is not None:
            self._here[0].storage.close()
        if self._redis is not None:
            await self._redis[0].storage.bridge.storage.aclose()

    def _of(self, origin: str, tenant: str) -> tuple[list[Rule], list[Rule]]:
        """The rules for requests, and those for what is counted afterwards."""
        found = self._rules.get((origin, tenant))
        if found is None:
            config = self._config
            own = config.tenants.get(tenant)
            rules = [
                *(_rules(config.key, "access.limits.key", f"key/{origin}") if origin else ()),
                *_rules(
                    own or config.tenant,
                    f"access.limits.tenants.{tenant}" if own else "access.limits.tenant",
                    f"tenant/{tenant}",
                ),
            ]
            found = [r for r in rules if r.kind == "requests"], [r for r in rules if r.kind != "requests"]
            self._rules[origin, tenant] = found
        return found

    async def _passes(self, rule: Rule, *, hit: bool = False) -> bool:
        """Whether one more request is within a rule; `hit` counts it."""
        answer = await self._ask(lambda fixed, sliding: (sliding.hit if hit else sliding.test)(rule.item, rule.key))
        return True if answer is None else answer

    async def _wait(self, rule: Rule) -> float:
        """Seconds until the next request is let through, if nobody asks in between."""
        length, limit = rule.item.get_expiry(), rule.item.amount
        window = await self._ask(
            lambda fixed, sliding: sliding.storage.get_sliding_window(rule.item.key_for(rule.key), length)
        )
        if window is None:
            return AGAIN_S
        previous, left, current, rest = window
        # Just after: at the moment itself the count is still the limit.
        if current >= limit or not previous:
            return rest - length + 0.01
        return left - (limit - current) * length / previous + 0.01

    async def _look(self, origin: str, tenant: str, rules: Iterable[Rule]) -> None:
        """See what others have used of the quotas, where that is not known well enough."""
        now = self._clock()
        if 0 <= now - self._looked.get((origin, tenant), 0) < LOOK_S:
            return
        self._looked[origin, tenant] = now
        for rule in rules:
            await self._note(rule)

    async def _note(self, rule: Rule) -> None:
        stats = await self._ask(lambda fixed, sliding: fixed.get_window_stats(rule.item, rule.key))
        if stats is not None and stats.remaining <= 0:
            self._spent[rule.key] = stats.reset_time
        else:
            self._spent.pop(rule.key, None)

    async def _charge(self) -> None:
        if self._config.store != "memory":
            await asyncio.sleep(TOGETHER_S)
        while self._charges:
            charges, self._charges = self._charges, {}
            for rule, amount in charges.items():
                try:
                    await self._ask(lambda fixed, _, r=rule, n=amount: fixed.hit(r.item, r.key, cost=n))
                    await self._note(rule)
                except Limited:  # closed while Redis is away: what ran has run
                    continue

    async def _ask(self, call: Callable[[Any, Any], Any]) -> Any:
        """What the store in force answers; None where nothing is counted. Raises Limited where it is away and
        access.limits.away is closed."""
        if self._config.store == "memory":
            return await call(*self._local())
        now = time.monotonic()
        if now >= self._again:
            if self._away:
                self._again = now + AGAIN_S  # this one finds out; the others do not wait for it
            remote = self._remote()
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    answer = await call(*remote)
                if self._away:
                    self._log.warning("access.limits.store: %s answers again", self._config.store)
                self._away, self._again = False, 0.0
                return answer
            except (TimeoutError, OSError, *_faults()) as error:
                if not self._away:
                    told = (self._config.store, type(error).__name__, self._config.away)
                    self._log.warning("access.limits.store: %s does not answer (%s); away: %s", *told)
                self._away, self._again = True, time.monotonic() + AGAIN_S
        if self._config.away == "closed":
            raise Limited(
                f"limits cannot be counted: {self._config.store} does not answer, and access.limits.away is closed",
                AGAIN_S,
            )
        return None if self._config.away == "open" else await call(*self._local())

    def _local(self) -> Any:
        if self._here is None:
            from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

            from serve.keys.counts import SharedCounts

            storage = SharedCounts(self._file, clock=self._clock)
            self._here = FixedWindowRateLimiter(storage), SlidingWindowCounterRateLimiter(storage)
        return self._here

    def _remote(self) -> Any:
        if self._redis is None:
            from limits.aio.storage import RedisStorage
            from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff

            options: dict[str, Any] = {
                "password": secret(self._config.password_file, "REDISCLI_AUTH", key="access.limits.password_file"),
                "socket_timeout": TIMEOUT_S,
                "socket_connect_timeout": TIMEOUT_S,
                "retry": Retry(NoBackoff(), 0),  # redis-py's own goes on for seconds
            }
            storage = RedisStorage(
                f"async+{self._config.store}", implementation="redispy", key_prefix="SHOAL", **options
            )
            self._redis = FixedWindowRateLimiter(storage), SlidingWindowCounterRateLimiter(storage)
        return self._redis


def _faults() -> tuple[type[Exception], ...]:
    from redis.exceptions import RedisError

    return (RedisError,)


def _rules(limit: Limit, where: str, who: str) -> Iterable[Rule]:
    from limits import parse_many

    for kind in ("requests", *AFTERWARDS):
        if (text := getattr(limit, kind)) is not None:
            for part, item in zip(text.split(";"), parse_many(text)):
                scaled = type(item)(item.amount * _SCALE.get(kind, 1), item.multiples)
                yield Rule(kind, scaled, f"{kind}/{who}/{item}", f"{where}.{kind}: {part.strip()}")


def _limited(rule: Rule, wait: float) -> Limited:
    wait = max(wait, 0.0)
    at = datetime.fromtimestamp(time.time() + wait, UTC).isoformat(timespec="seconds")
    return Limited(f"{rule.text} is used up; it opens again in {wait:.0f} s, at {at}", wait)
