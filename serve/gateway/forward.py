"""One request to one of a model's replicas, and its answer back: least in hand first, again elsewhere where that is
safe, held while no replica is up.

What is safe: a request that no replica has seen, or none the whole of, is always sent again, as far as its bytes are
kept. One that a replica had when it died is sent once more, because answering changes nothing, unless the model's file
(serve.idempotent) or the client (x-shoal-retry: never) says otherwise. Once: a request that kills its replica takes
down two of them, not all (serve.gateway.suspects).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from serve.asgi import PATIENCE_S, Disconnected, header
from serve.gateway.answer import Answer, Lost
from serve.gateway.directory import Directory, Replica
from serve.gateway.errand import Errand, busy, pass_back, poison
from serve.gateway.holding import Load, hold
from serve.gateway.suspects import Suspects, fingerprint
from serve.gateway.wire import head

_PASSED_ON = frozenset((b"content-type", b"content-encoding", b"accept", b"x-request-id"))


class Forwarder:
    """Sends requests to replicas. All methods belong to one event loop."""

    def __init__(self, directory: Directory, secret: Callable[[], bytes]) -> None:
        self.directory = directory
        self.secret = secret
        self.suspects = Suspects()
        self.loads: dict[str, Load] = {}

    def load(self, application: str) -> Load:
        if (found := self.loads.get(application)) is None:
            found = self.loads[application] = Load()
        return found

    async def send(self, errand: Errand) -> None:
        """Answer the client, whatever happens. Raises Disconnected, what the body raises, and Lost where an answer that
        had begun broke off: the connection is cut then, for an answer that ends well would look whole."""
        load = self.load(errand.application)
        load.come()
        # The replica itself answers in time; a second more is for what hangs on the way.
        try:
            async with asyncio.timeout(errand.model["timeout_s"] + 1) as errand.limit:
                await self._send(errand, load)
        except TimeoutError:
            load.failed += 1
            if errand.begun:
                raise
            if not errand.sent:
                return await busy(errand, 5)
            message = f"{errand.name}: no answer in time; raise serve.request_timeout_s, or send less"
            await errand.refuse(errand.send, 504, message, "Timeout", ())
        finally:
            load.gone()

    async def _send(self, errand: Errand, load: Load) -> None:
        """Once, and where a replica dies with it once more: then in turn with the others that this one took along."""
        if self.suspects:  # else nothing died lately, and nobody need know these bytes again
            errand.mark = _mark(errand)
            if left := self.suspects.seconds_left(errand.mark):
                await poison(errand, left)
                return
        avoid: set[str] = set()
        age = await self._round(errand, load, avoid, again=self.may_run_twice(errand))
        if age is not None:
            load.again += 1
            async with self.suspects.alone(errand.application, 2 * age + 0.25):
                await self._round(errand, load, avoid, again=False, turn=True)

    async def _round(
        self, errand: Errand, load: Load, avoid: set[str], *, again: bool, turn: bool = False
    ) -> float | None:
        """Ask replicas until one has had the request. None: the client has its answer. Else the replica died with it
        before it answered, after so many seconds, and `again` allows another round."""
        body, message = errand.body, _head(errand, self.secret())
        # Whoever comes while others wait has its place behind them.
        free = not self.directory.waiting.any(errand.application)
        while True:
            replica = self.directory.pick(errand.application, avoid=avoid, prefer=errand.name) if free else None
            if replica is None:
                if not errand.held:
                    return await busy(errand, 1)
                if free and avoid and self.directory.pick(errand.application) is not None:
                    # All that there are were tried, and each had its hands full. Who was held was told to wait.
                    if errand.held_until is None:
                        return await busy(errand, 1)
                    self.directory.waiting.again(errand.application)
                if (seconds := await hold(errand, load, self.directory.waiting)) is not None:
                    return await busy(errand, seconds)
                avoid.clear()
                free = True
                continue
            began = time.monotonic()
            try:
                answer = await self._ask(replica, message, errand, load)
                if answer is None:
                    if errand.mark:
                        self.suspects.cleared(errand.mark)
                    return None
                # It has not looked at the request: it leaves, is full, or is another one at an address that was free.
                replica.leaving = replica.leaving or answer.get(b"x-shoal") == b"leaving"
                if answer.get(b"x-shoal") == b"busy":
                    self.directory.full(replica)
                avoid.add(replica.id)
                if not body.kept:
                    return await busy(errand, 1)
            except Lost as lost:
                if body.fault is not None:
                    raise body.fault from None
                avoid.add(replica.id)
                if errand.begun:
                    # Perhaps it ended this one answer alone. Is it dead, the next request finds out and loses nothing.
                    load.failed += 1
                    raise
                self.directory.shun(replica)
                if not lost.sent:
                    if body.kept:
                        continue
                    return await busy(errand, 1)
                if body.whole is not None:
                    errand.mark = errand.mark or _mark(errand)
                    if self.suspects.struck(errand.mark, errand.application, turn=turn) > 1:
                        load.failed += 1
                        return await poison(errand, self.suspects.seconds_left(errand.mark))
                if body.kept and (again or (body.more and not turn)):
                    return time.monotonic() - began
                if body.more:  # nothing was done with it yet, and the client has all of it
                    return await busy(errand, 1)
                load.failed += 1
                text = f"{errand.name}: its replica went away; send the request again"
                return await errand.refuse(errand.send, 502, text, "Unavailable", ())

    async def _ask(self, replica: Replica, message: bytes, errand: Errand, load: Load) -> Answer | None:
        """Ask one replica and pass its answer back; the answer itself where it was none: 503 and why. None: done."""
        body = errand.body
        errand.asked = time.perf_counter()
        replica.ongoing += 1
        load.ongoing += 1
        asking: Answer | None = None
        task = asyncio.current_task()
        gone = False

        async def watch() -> None:
            nonlocal gone
            await body.gone()
            gone = True
            if asking is not None:
                asking.drop()
            elif task is not None:
                task.cancel()

        watching: asyncio.Task[None] | None = None

        loop = asyncio.get_running_loop()

        def start() -> None:
            nonlocal watching, timer
            if body.more:
                timer = loop.call_later(PATIENCE_S, start)  # it is still coming, and read for the replica
            else:
                watching = loop.create_task(watch())

        timer = loop.call_later(PATIENCE_S, start)
        errand.sent = True
        try:
            to = b"%bx-shoal-replica: %b\r\n\r\n" % (message, replica.id.encode())
            asking = await replica.peer.ask(to, body.stream() if body.whole is None else body.whole)
            if asking.get(b"x-shoal"):
                await asking.read()
                errand.sent = False
                return asking
            errand.answered_by = replica.id
            await pass_back(asking, errand)
            return None
        except asyncio.CancelledError:
            if gone:
                if task is not None:
                    task.uncancel()
                raise Disconnected from None
            raise
        except Lost as lost:
            if gone:
                raise Disconnected from None
            errand.sent = lost.sent
            raise
        finally:
            replica.ongoing -= 1
            load.ongoing -= 1
            if self.directory.waiting:
                self.directory.waiting.admit(errand.application)
            timer.cancel()
            if watching is not None:
                watching.cancel()
            if asking is not None:
                asking.drop()

    def may_run_twice(self, errand: Errand) -> bool:
        """Whether the model's file and the client allow it."""
        if not errand.again or not errand.model.get("idempotent", True):
            return False
        return not any(key == b"x-shoal-retry" and value.lower() == b"never" for key, value in errand.scope["headers"])


def _mark(errand: Errand) -> str:
    scope = errand.scope
    media = header(scope["headers"], b"content-type")
    version = str(errand.model.get("version", "")).encode()
    parts = (errand.application.encode(), version, errand.route.encode(), scope["query_string"], media)
    return fingerprint((*parts, errand.body.whole or b""))


def _head(errand: Errand, secret: bytes) -> bytes:
    """But for the line that names the replica, and the empty one."""
    scope = errand.scope
    query = scope["query_string"].decode("latin-1")
    headers = [pair for pair in scope["headers"] if pair[0] in _PASSED_ON]
    headers.append((b"x-shoal-secret", secret))
    length = None if errand.body.whole is None else len(errand.body.whole)
    # Copies that several models share tell them apart by the path.
    route = errand.model.get("route", "") + errand.route or "/"
    return head("POST", f"{route}?{query}" if query else route, headers, length)[:-2]
