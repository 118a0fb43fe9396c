"""Requests that wait at a gateway until a replica can take them: first come, first served, and let go as fast as there
is room, not all at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve.asgi import Disconnected

if TYPE_CHECKING:
    from serve.gateway.errand import Errand

# Where a model's entry does not say: requests held for it, and seconds that they are.
MAX_HELD, HOLD_S = 1000, 120
_AGAIN_S = 0.25  # a replica that was full, though there seemed to be room, is looked at again after so long


@dataclass
class Load:
    """What one application has at this gateway: `ongoing` with its replicas, `held` while none can take them; the rest
    counts since the gateway started. `present_s` is the seconds that requests have spent here less the times at which
    those came that are still here: with these times it tells how many there were on average."""

    ongoing: int = 0
    held: int = 0
    arrived: int = 0
    failed: int = 0
    again: int = 0
    present: int = 0
    present_s: float = 0.0

    def come(self) -> None:
        self.arrived += 1
        self.present += 1
        self.present_s -= time.monotonic()

    def gone(self) -> None:
        self.present -= 1
        self.present_s += time.monotonic()

    def told(self) -> dict[str, float]:
        """For the Keeper. `request_s`: seconds that all requests spent here together until now, which is `at`."""
        now = time.monotonic()
        counts = {key: getattr(self, key) for key in ("ongoing", "held", "arrived", "failed", "again")}
        return {**counts, "request_s": self.present_s + self.present * now, "at": now}


class Waiting:
    """The queues, by application. All methods belong to one event loop."""

    def __init__(self, room: Callable[[str], int]) -> None:
        """`room`: how many more requests an application's replicas take of this gateway now."""
        self._room = room
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._granted: dict[str, int] = {}
        self.starts: dict[str, int] = {}  # seconds until a replica is up, as the Keeper has it
        self.sharing = 1  # gateways among which limits are shared

    def __bool__(self) -> bool:
        return bool(self._queues)

    def any(self, application: str) -> bool:
        """Whether somebody waits, behind whom a new request has its place."""
        return application in self._queues

    def join(self, application: str) -> asyncio.Future[None]:
        """A place in the queue; done when it is this request's turn, which `take` or `leave` must follow."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(application, deque()).append(waiter)
        return waiter

    def take(self, application: str) -> None:
        """The turn is used: from now on the request counts with its replica."""
        self._granted[application] -= 1

    def leave(self, application: str, waiter: asyncio.Future[None]) -> None:
        """The request is answered otherwise, or its client has gone."""
        if waiter.done() and not waiter.cancelled():
            self.take(application)
        elif (queue := self._queues.get(application)) is not None:
            queue.remove(waiter)
            if not queue:
                del self._queues[application]
        waiter.cancel()
        self.admit(application)

    def admit(self, application: str) -> None:
        """Give turns to as many as there is room for. Called whenever there may be more of it."""
        queue = self._queues.get(application)
        if queue is None:
            return
        room = self._room(application) - self._granted.get(application, 0)
        while queue and room > 0:
            queue.popleft().set_result(None)
            self._granted[application] = self._granted.get(application, 0) + 1
            room -= 1
        if not queue:
            del self._queues[application]

    def admit_all(self) -> None:
        for application in list(self._queues):
            self.admit(application)

    def again(self, application: str) -> None:
        """Look for room once more in a moment."""
        asyncio.get_running_loop().call_later(_AGAIN_S, self.admit, application)

    def left(self, application: str) -> int:
        """Seconds after which a client may come again: when a replica will be up, as far as is known."""
        return max(1, self.starts.get(application, 1))


async def hold(errand: Errand, load: Load, waiting: Waiting) -> int | None:
    """Wait for this request's turn with a replica. None when it has come; else the seconds after which the client may
    try again, for too many wait already, or this one has for too long. Raises Disconnected.

    The time is not the request's own: that goes on when it is let go.
    """
    loop, model = asyncio.get_running_loop(), errand.model
    began = loop.time()
    until = errand.held_until
    if until is None:
        if load.held >= -(-model.get("max_held", MAX_HELD) // waiting.sharing):
            return waiting.left(errand.application)
        until = errand.held_until = began + model.get("hold_s", HOLD_S)
    limit = errand.limit
    when = None if limit is None else limit.when()
    left = None if when is None else when - began
    if limit is not None:
        limit.reschedule(None)
    load.held += 1
    gone = asyncio.ensure_future(errand.body.gone()) if not errand.body.more else None
    turn, come = waiting.join(errand.application), False
    waiting.admit(errand.application)
    try:
        either = [one for one in (gone, turn) if one is not None]
        rest = max(0, until - began)
        await asyncio.wait(either, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
        if gone is not None and gone.done():
            raise Disconnected
        come = turn.done()
    finally:
        load.held -= 1
        if gone is not None:
            gone.cancel()
        if come:
            waiting.take(errand.application)
        else:
            waiting.leave(errand.application, turn)
        if limit is not None and left is not None:
            limit.reschedule(loop.time() + left)
    return None if come else waiting.left(errand.application)
