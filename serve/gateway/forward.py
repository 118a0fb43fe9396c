"""One request to one of a model's replicas, and its answer back: least in hand first, again elsewhere where that is
safe, held while no replica is up.

What is safe: a request that no replica has seen is always sent again. One that a replica had when it died is sent once
more, because answering changes nothing, unless the model's file (serve.idempotent) or the client (x-shoal-retry: never)
says otherwise. Once: a request that kills its replica takes down two of them, not all.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serve.asgi import Disconnected, Scope, Send
from serve.gateway.body import Body
from serve.gateway.directory import Directory, Replica
from serve.gateway.wire import Answer, Lost, head

# An answer up to this size goes out in one piece.
WHOLE_BYTES = 1_048_576
# A client that goes away is looked for once its answer takes longer than this: most don't, and looking costs.
PATIENCE_S = 0.1
_PASSED_ON = frozenset((b"content-type", b"content-encoding", b"accept", b"x-request-id"))
_PASSED_BACK = frozenset((b"content-type", b"content-length", b"content-encoding", b"retry-after"))
Headers = tuple[tuple[bytes, bytes], ...]
Refuse = Callable[[Send, int, str, str, Headers], Awaitable[None]]


@dataclass
class Load:
    """What one application has at this gateway: `ongoing` with its replicas, `held` while none is up; the rest counts
    since the gateway started."""

    ongoing: int = 0
    held: int = 0
    arrived: int = 0
    failed: int = 0
    again: int = 0


@dataclass
class Errand:
    """A request on its way: to which model and where, its body, and how to say what went wrong."""

    name: str
    model: Mapping[str, Any]
    route: str
    body: Body
    scope: Scope
    send: Send
    refuse: Refuse
    begun: bool = False
    again: bool = True
    """Whether it may go to a second replica after it was sent to one."""
    held: bool = True
    """Whether it waits where no replica is up; it is refused otherwise."""
    answered_by: str = ""
    """Id of the replica whose answer went back."""

    @property
    def application(self) -> str:
        return self.model.get("application", self.name)


class Forwarder:
    """Sends requests to replicas. All methods belong to one event loop."""

    def __init__(self, directory: Directory, secret: Callable[[], bytes]) -> None:
        self.directory = directory
        self.secret = secret
        self.loads: dict[str, Load] = {}
        self.max_held = 1024

    def load(self, application: str) -> Load:
        if (found := self.loads.get(application)) is None:
            found = self.loads[application] = Load()
        return found

    async def send(self, errand: Errand) -> None:
        """Answer the client, whatever happens. Raises Disconnected, what the body raises, and Lost where an answer that
        had begun broke off: the connection is cut then, for an answer that ends well would look whole."""
        load = self.load(errand.application)
        load.arrived += 1
        # The replica itself answers in time; a second more is for what hangs on the way.
        try:
            async with asyncio.timeout(errand.model["timeout_s"] + 1):
                await self._send(errand, load)
        except TimeoutError:
            load.failed += 1
            if errand.begun:
                raise
            message = f"{errand.name}: no answer in time; raise serve.request_timeout_s, or send less"
            await errand.refuse(errand.send, 504, message, "Timeout", ())

    async def _send(self, errand: Errand, load: Load) -> None:
        body, avoid, again = errand.body, set(), errand.again and self.may_run_twice(errand)
        message = _head(errand, self.secret())
        while True:
            replica = self.directory.pick(errand.application, avoid=avoid, prefer=errand.name)
            if replica is None:
                if not errand.held or (avoid and self.directory.pick(errand.application) is not None):
                    # All that there are were tried, and each had its hands full.
                    return await _busy(errand, 1)
                if not await self._hold(errand, load):
                    return None
                avoid = set()
                continue
            try:
                answer = await self._ask(replica, message, errand, load)
                if answer is None:
                    return None
                if answer.status == 503 and (why := answer.get(b"x-shoal")):
                    # It has not looked at the request: it leaves, or is full.
                    replica.leaving = replica.leaving or why == b"leaving"
                    avoid.add(replica.id)
                    if body.whole is None:
                        return await _busy(errand, 1)
                    continue
                return None
            except Lost as lost:
                if body.fault is not None:
                    raise body.fault from None
                self.directory.shun(replica)
                avoid.add(replica.id)
                if errand.begun:
                    load.failed += 1
                    raise
                if lost.sent and (not again or body.whole is None):
                    load.failed += 1
                    message_ = f"{errand.name}: its replica went away; send the request again"
                    return await errand.refuse(errand.send, 502, message_, "Unavailable", ())
                if lost.sent:
                    again = False
                    load.again += 1

    async def _ask(self, replica: Replica, message: bytes, errand: Errand, load: Load) -> Answer | None:
        """Ask one replica and pass its answer back; the answer itself where it was none: 503 and why. None: done."""
        body = errand.body
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

        def start() -> None:
            nonlocal watching
            if not body.more:
                watching = asyncio.get_running_loop().create_task(watch())

        timer = asyncio.get_running_loop().call_later(PATIENCE_S, start)
        try:
            asking = await replica.peer.ask(message, body.stream() if body.whole is None else body.whole)
            if asking.status == 503 and asking.get(b"x-shoal"):
                await asking.read()
                return asking
            errand.answered_by = replica.id
            await _pass_back(asking, errand)
            return None
        except asyncio.CancelledError:
            if gone:
                raise Disconnected from None
            raise
        except Lost:
            if gone:
                raise Disconnected from None
            raise
        finally:
            replica.ongoing -= 1
            load.ongoing -= 1
            timer.cancel()
            if watching is not None:
                watching.cancel()
            if asking is not None:
                asking.drop()

    async def _hold(self, errand: Errand, load: Load) -> bool:
        """Wait until a replica is up; False where the request was answered instead."""
        if load.held >= self.max_held:
            await _busy(errand, 5)
            return False
        load.held += 1
        gone = asyncio.ensure_future(errand.body.gone()) if not errand.body.more else None
        here = self.directory.news(errand.application)
        try:
            await asyncio.wait([one for one in (gone, here) if one is not None], return_when=asyncio.FIRST_COMPLETED)
            if gone is not None and gone.done():
                raise Disconnected
            return True
        finally:
            load.held -= 1
            for one in (gone, here):
                if one is not None:
                    one.cancel()

    def may_run_twice(self, errand: Errand) -> bool:
        """Whether the model's file and the client allow it."""
        allowed = errand.model.get("idempotent", True)
        return allowed and (b"x-shoal-retry", b"never") not in errand.scope["headers"]


async def _busy(errand: Errand, seconds: int) -> None:
    # Clients of the Hugging Face routes retry a 503 at once and without end, hence 429.
    message = f"{errand.name}: every replica is busy, or none is up; try again after the time in Retry-After"
    await errand.refuse(errand.send, 429, message, "Overloaded", ((b"retry-after", b"%d" % seconds),))


def _head(errand: Errand, secret: bytes) -> bytes:
    scope = errand.scope
    query = scope["query_string"].decode("latin-1")
    headers = [pair for pair in scope["headers"] if pair[0] in _PASSED_ON]
    headers.append((b"x-shoal-secret", secret))
    length = None if errand.body.whole is None else len(errand.body.whole)
    return head("POST", f"{errand.route or '/'}?{query}" if query else errand.route or "/", headers, length)


@functools.cache
def printable(version: str) -> bytes:
    """A version as a header can hold it; there are as many as are served."""
    return "".join(one if "!" <= one <= "~" else "?" for one in version).encode()


async def _pass_back(answer: Answer, errand: Errand) -> None:
    """Send an answer on: in one piece where it is small, else as it comes."""
    headers = [pair for pair in answer.headers if pair[0] in _PASSED_BACK]
    headers.append((b"x-shoal-version", printable(errand.model["version"])))
    start = {"type": "http.response.start", "status": answer.status, "headers": headers}
    send = errand.send
    if answer.status >= 500 and not answer.get(b"content-type").startswith(b"application/json"):
        # What the server says in its own words where ours found none.
        await answer.read()
        await errand.refuse(send, 500, f"{errand.name}: the replica failed on this request", "InternalError", ())
        return
    length = answer.length
    if length is not None and length <= WHOLE_BYTES:
        content = await answer.read()
        errand.begun = True
        await send(start)
        await send({"type": "http.response.body", "body": content})
        return
    errand.begun = True
    await send(start)
    async for chunk in answer.chunks():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
