"""HTTP/1.1 to replicas: connections that are kept, an answer that is told of as soon as its head is there, and the one
thing that a general client does not tell: how far a request had come when its connection broke.

Parsed by httptools, as uvicorn does on the other side. A request costs a quarter of what it costs by aiohttp.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httptools

# What may lie here unread, of one answer, before its replica has to wait.
HIGH_WATER = 262_144
CONNECT_S = 2.0
Headers = list[tuple[bytes, bytes]]


class Lost(Exception):
    """The connection broke. `sent`: bytes of the request had gone out; `begun`: the answer's head had come."""

    def __init__(self, why: str, *, sent: bool, begun: bool) -> None:
        super().__init__(why)
        self.sent = sent
        self.begun = begun


class Peer:
    """One address and the connections to it. `address` is a unix socket's path, or host:port."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.idle: list[Connection] = []
        self.busy: set[Connection] = set()

    async def ask(self, head: bytes, body: bytes | AsyncIterator[bytes]) -> Answer:
        """Send a request, and return once the head of its answer is there. Raises Lost, and what `body` raises."""
        connection = self.idle.pop() if self.idle else await self._connect()
        self.busy.add(connection)
        try:
            return await connection.ask(head, body)
        except BaseException:
            connection.close("given up")
            raise

    def cut(self, why: str) -> None:
        """Break all connections: whoever waits on one learns of it at once."""
        for connection in [*self.idle, *self.busy]:
            connection.close(why)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                if self.address.startswith("/"):
                    _, made = await loop.create_unix_connection(lambda: Connection(self), self.address)
                else:
                    host, _, port = self.address.rpartition(":")
                    _, made = await loop.create_connection(lambda: Connection(self), host.strip("[]"), int(port))
        except OSError as error:  # TimeoutError is one
            raise Lost(str(error) or "it does not answer", sent=False, begun=False) from None
        return made


class Connection(asyncio.Protocol):
    """One connection, with one request at a time on it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.answer: Answer | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self.sent = False
        self.uploaded = True
        self.why = ""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    async def ask(self, head: bytes, body: bytes | AsyncIterator[bytes]) -> Answer:
        self.answer = answer = Answer(self)
        self.parser = httptools.HttpResponseParser(self)
        if isinstance(body, bytes):
            self.transport.write(head + body)
            self.sent = True
        else:
            self.uploaded = False
            self.transport.write(head)
            self.sent = True
            async for chunk in body:
                if answer.head.done():
                    break  # it was refused before all of it had gone out
                self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunk else b"")
                await self.writable.wait()
            else:
                self.transport.write(b"0\r\n\r\n")
                self.uploaded = True
        await answer.head
        return answer

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, AttributeError):
            self.close("it does not speak HTTP")

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self.answer is not None
        self.answer.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        answer = self.answer
        assert answer is not None
        answer.status = self.parser.get_status_code()
        if not answer.head.done():
            answer.head.set_result(None)

    def on_body(self, body: bytes) -> None:
        if self.answer is not None:
            self.answer.put(body)

    def on_message_complete(self) -> None:
        answer, self.answer = self.answer, None
        self.peer.busy.discard(self)
        if answer is not None:
            answer.end()
        if self.uploaded and self.parser.should_keep_alive() and not self.transport.is_closing():
            self.sent = False
            self.transport.resume_reading()
            self.peer.idle.append(self)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def close(self, why: str) -> None:
        """Break it; the reason is told to whoever waits."""
        self.why = self.why or why
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.peer.busy.discard(self)
        if self in self.peer.idle:
            self.peer.idle.remove(self)
        self.writable.set()
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.fail(Lost(self.why or str(exc or "it went away"), sent=self.sent, begun=answer.status != 0))


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
        return next((value for key, value in self.headers if key == name), b"")

    @property
    def length(self) -> int | None:
        """Content-Length, where it says one."""
        text = self.get(b"content-length")
        return int(text) if text.isdigit() else None

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
                if self.size >= HIGH_WATER and not self.ended:
                    self.connection.transport.resume_reading()
                self.size = 0
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
            self.connection.transport.pause_reading()
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


def head(method: str, target: str, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> bytes:
    """A request's head; `length` of the body in bytes, or None where it comes in chunks."""
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    lines = itertools.chain(
        (b"%b %b HTTP/1.1" % (method.encode(), target.encode("latin-1")), b"host: replica", framing)
    )
    return b"\r\n".join([*lines, *(b"%b: %b" % pair for pair in headers), b"", b""])
