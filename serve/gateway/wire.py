"""HTTP/1.1 to replicas: connections that are kept, an answer that is told of as soon as its head is there, and the one
thing that a general client does not tell: how far a request had come when its connection broke.

Parsed by httptools, as uvicorn does on the other side. A request costs a quarter of what it costs by aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import select
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httptools

from serve.gateway.answer import Answer, Lost

CONNECT_S = 2.0
# Connections to one replica that are kept while nothing is asked on them.
IDLE = 256
# A replica's host that does not answer the kernel for so long is taken for cut off.
SILENT_S = 4.0


class Peer:
    """One address and the connections to it. `address` is a unix socket's path, or host:port."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.idle: list[Connection] = []
        self.busy: set[Connection] = set()
        self.retired = False

    async def ask(self, head: bytes, body: bytes | AsyncIterator[bytes]) -> Answer:
        """Send a POST, and return once the head of its answer is there. Raises Lost, and what `body` raises."""
        connection = self._kept() or await self._connect()
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

    def retire(self) -> None:
        """Nothing more will be asked: no connection is kept, and those in use end with their answers."""
        self.retired = True
        for connection in [*self.idle]:
            connection.close("it is not needed any more")

    def _kept(self) -> Connection | None:
        """A kept connection on which nothing has come since: what has could only be its end, or bytes that nobody asked
        for. A request on such a one would count as sent, and was not."""
        while self.idle:
            connection = self.idle.pop()
            if connection.quiet():
                return connection
            connection.close("it was closed while idle")
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                if self.address.startswith("/"):
                    ready = await _unix(self.address)
                    _, made = await loop.create_unix_connection(lambda: Connection(self), sock=ready)
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
        self.interim = False
        self.paused = False
        self.why = ""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.poll = select.poll()
        self.poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        if not self.peer.address.startswith("/"):
            _notice_silence(transport.get_extra_info("socket"))

    def quiet(self) -> bool:
        """Whether it is open, and nothing waits to be read. A system call of half a microsecond."""
        return not self.transport.is_closing() and not self.poll.poll(0)

    async def ask(self, head: bytes, body: bytes | AsyncIterator[bytes]) -> Answer:
        self.answer = answer = Answer(self)
        self.parser = httptools.HttpResponseParser(self)
        if self.transport.is_closing():
            raise Lost("it was closed as it opened", sent=False, begun=False)
        self.sent = True
        if isinstance(body, bytes):
            self.transport.write(head + body)
        else:
            self.uploaded = False
            self.transport.write(head)
            await self._upload(answer, body)
        await answer.head
        return answer

    async def _upload(self, answer: Answer, body: AsyncIterator[bytes]) -> None:
        """Send a body as it comes, until all has gone out or the answer is there: one that does not wait for it is a
        refusal. Raises what `body` raises."""

        async def send() -> None:
            async for chunk in body:
                if chunk:
                    self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                await self.writable.wait()
                if answer.ended:
                    return  # it went away: no more is taken from the client for it
            self.transport.write(b"0\r\n\r\n")
            self.uploaded = True

        sending = asyncio.ensure_future(send())
        try:
            await asyncio.wait((sending, answer.head), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not sending.done():
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sending
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    def data_received(self, data: bytes) -> None:
        if self.answer is None:
            return self.close("it says what nobody asked for")
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close("it does not speak HTTP")

    def on_message_begin(self) -> None:
        if self.answer is None:
            self.close("it answers more than once")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.answer is not None:
            self.answer.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        answer = self.answer
        if answer is None:
            return
        status = self.parser.get_status_code()
        if status < 200:
            # "Go on", "early hints": the answer itself comes after it.
            self.interim = True
            answer.headers.clear()
            return
        answer.status = status
        if not answer.head.done():
            answer.head.set_result(None)

    def on_body(self, body: bytes) -> None:
        if self.answer is not None:
            self.answer.put(body)

    def on_message_complete(self) -> None:
        if self.interim:
            self.interim = False
            return
        answer, self.answer = self.answer, None
        if answer is None:
            return
        self.peer.busy.discard(self)
        answer.end()
        keep = self.uploaded and self.parser.should_keep_alive() and not self.transport.is_closing()
        if keep and not self.peer.retired and len(self.peer.idle) < IDLE:
            self.sent = False
            self.flow(True)
            self.peer.idle.append(self)
        else:
            self.transport.abort()  # all of the answer is here, and what we had yet to send nobody wants

    def flow(self, wanted: bool) -> None:
        """Read on, or let the replica wait."""
        if self.paused == wanted and not self.transport.is_closing():
            self.paused = not wanted
            self.transport.resume_reading() if wanted else self.transport.pause_reading()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def close(self, why: str) -> None:
        """Break it; the reason is told to whoever waits."""
        self.why = self.why or why
        self._forget()  # now, not when the loop gets to it: nobody may take it until then
        self.transport.abort()

    def eof_received(self) -> None:
        answer = self.answer
        if answer is not None and answer.status and not answer.framed:
            # Without a length and chunks an answer ends with its connection (RFC 9112, 6.3).
            self.answer = None
            self._forget()
            answer.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self.writable.set()
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.fail(Lost(self.why or str(exc or "it went away"), sent=self.sent, begun=answer.status != 0))

    def _forget(self) -> None:
        self.peer.busy.discard(self)
        if self in self.peer.idle:
            self.peer.idle.remove(self)


async def _unix(path: str) -> socket.socket:
    """A connected socket. Raises OSError. By hand, for asyncio takes one whose server has no room for it yet (EAGAIN)
    for connected, and what is written to it for sent."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        while True:
            try:
                made.connect(path)
                return made
            except BlockingIOError:
                await asyncio.sleep(0.002)
    except BaseException:
        made.close()
        raise


def _notice_silence(sock: Any) -> None:
    """Let the kernel break a connection whose other host has not answered it for SILENT_S seconds, be it asked for
    nothing: a host that is cut off closes nothing. One that is merely busy answers, for its kernel does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 1),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", int(SILENT_S)),
        ("TCP_USER_TIMEOUT", int(SILENT_S * 1000)),
    ):
        if hasattr(socket, option):  # the last is Linux's own
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def head(method: str, target: str, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> bytes:
    """A request's head; `length` of the body in bytes, or None where it comes in chunks."""
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    lines = itertools.chain(
        (b"%b %b HTTP/1.1" % (method.encode(), target.encode("latin-1")), b"host: replica", framing)
    )
    return b"\r\n".join([*lines, *(b"%b: %b" % pair for pair in headers), b"", b""])
