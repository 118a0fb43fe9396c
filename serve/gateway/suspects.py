"""Requests that were at work on a replica as it died: one of them may be why.

Such a suspect is run once more, but one at a time, so that a request that kills does not take its neighbours with it
twice. One that was at work at two deaths is poison: the same bytes are refused for some minutes, on every gateway.
Where nothing died lately, a request costs nothing here.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

REFUSED_S = 300.0
MOST = 1024  # fingerprints that are remembered; 64 bytes each
# A suspect runs alone for so long at most; what has done no harm until then lets the next one go.
ALONE_S = 2.0


class Suspects:
    """What is remembered of them, by fingerprint: deaths, and until when. All methods belong to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.deaths: dict[str, tuple[int, float]] = {}
        self.turns: dict[str, asyncio.Lock] = {}
        self.running: dict[str, int] = {}  # suspects at work, by application

    def __bool__(self) -> bool:
        return bool(self.deaths)

    def seconds_left(self, fingerprint: str) -> float:
        """For how long these bytes are refused, 0 where they aren't."""
        deaths, until = self.deaths.get(fingerprint, (0, 0.0))
        left = until - self.clock()
        if left <= 0:
            self.deaths.pop(fingerprint, None)
        return left if deaths > 1 and left > 0 else 0.0

    def struck(self, fingerprint: str, application: str, *, turn: bool) -> int:
        """A replica died with this request at work, in its `turn` or not. Returns at how many deaths it was, as far as
        it can be told: where another suspect was at work beside it, it may have been that one, and this death is not
        held against it."""
        deaths, until = self.deaths.get(fingerprint, (0, 0.0))
        if until <= self.clock():
            deaths = 0
        if deaths and self.running.get(application, 0) > turn:
            return deaths
        self._note(fingerprint, deaths + 1, REFUSED_S)
        return deaths + 1

    def cleared(self, fingerprint: str) -> None:
        """It was answered: whatever killed the replica, these bytes did not."""
        self.deaths.pop(fingerprint, None)

    @asynccontextmanager
    async def alone(self, application: str, seconds: float) -> AsyncIterator[None]:
        """The turn of a suspect: no other one of the application runs until it is over, or has lasted `seconds`."""
        lock = self.turns.setdefault(application, asyncio.Lock())
        await lock.acquire()
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                lock.release()

        timer = asyncio.get_running_loop().call_later(min(seconds, ALONE_S), release)
        self.running[application] = self.running.get(application, 0) + 1
        try:
            yield
        finally:
            timer.cancel()
            release()
            self.running[application] -= 1

    def told(self) -> dict[str, float]:
        """What other gateways are to know: poison, and for how many seconds more."""
        now = self.clock()
        for fingerprint in [key for key, (_, until) in self.deaths.items() if until <= now]:
            del self.deaths[fingerprint]
        return {key: until - now for key, (deaths, until) in self.deaths.items() if deaths > 1}

    def learn(self, poison: Mapping[str, float]) -> None:
        """What other gateways have found out."""
        for fingerprint, seconds in poison.items():
            if not self.seconds_left(fingerprint):
                self._note(fingerprint, 2, seconds)

    def _note(self, fingerprint: str, deaths: int, seconds: float) -> None:
        self.deaths.pop(fingerprint, None)
        self.deaths[fingerprint] = (deaths, self.clock() + seconds)
        while len(self.deaths) > MOST:
            del self.deaths[next(iter(self.deaths))]


def fingerprint(parts: Iterable[bytes]) -> str:
    """Of a request's bytes: the application and its version, the route, what kind of body, the body."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(b"%d:" % len(part))
        made.update(part)
    return made.hexdigest()
