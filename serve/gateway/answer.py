"""An answer on its way from a replica: its head as soon as that is there, its body as it comes, or how it was lost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from serve.asgi import header

if TYPE_CHECKING:
    from serve.gateway.wire import Connection

# What may lie here unread, of one answer, before its replica has to wait.
HIGH_WATER = 262_144
Headers = list[tuple[bytes, bytes]]


class Lost(Exception):
    """The connection broke. `sent`: bytes of the request had gone out; `begun`: the answer's head had come."""

    def __init__(self, why: str, *, sent: bool, begun: bool) -> None:
        super().__init__(why)
        self.sent = sent
        self.begun = begun


class Answer:
    """An answer as it comes: `status` and `headers` (names in small letters), then its body by `read` or `chunks`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.headers: Headers = []
        self.ready: deque[bytes] = deque()
        self.size = 0
        self.ended = False
        self.fault: Lost | None = None
        self.waiter: asyncio.Future[None] | None = None

    def get(self, name: bytes) -> bytes:
        """A header's value, or nothing."""
        return header(self.headers, name)

    @property
    def length(self) -> int | None:
        """Content-Length, where it says one."""
        text = self.get(b"content-length")
        return int(text) if text.isdigit() else None

    @property
    def framed(self) -> bool:
        """Whether it says itself where it ends."""
        return bool(self.get(b"content-length") or self.get(b"transfer-encoding")) or self.status in (204, 304)

    async def read(self) -> bytes:
        """The whole body. Raises Lost."""
        if self.ended and self.fault is None:
            return self.ready[0] if len(self.ready) == 1 else b"".join(self.ready)
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Lost where it breaks off."""
        while True:
            while self.ready:
                chunk = self.ready.popleft() if len(self.ready) == 1 else self._all()
                self.size = 0
                if not self.ended:
                    self.connection.flow(True)
                yield chunk
            if self.fault is not None:
                raise self.fault
            if self.ended:
                return
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter

    def drop(self) -> None:
        """Not wanted any more: break the connection, so that the replica stops working on it."""
        if not self.ended:
            self.connection.close("the client went away")

    def put(self, chunk: bytes) -> None:
        self.ready.append(chunk)
        self.size += len(chunk)
        if self.size >= HIGH_WATER:
            self.connection.flow(False)
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def fail(self, fault: Lost) -> None:
        self.fault, self.ended = fault, True
        if not self.head.done():
            self.head.set_exception(fault)
            self.head.exception()  # looked at, be there somebody who waits or not
        self._wake()

    def _all(self) -> bytes:
        joined = b"".join(self.ready)
        self.ready.clear()
        return joined

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
