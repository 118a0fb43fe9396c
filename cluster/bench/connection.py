"""One kept-alive HTTP/1.1 connection that sends requests made beforehand and notes when what came back.

Callbacks instead of coroutines and objects for headers: a load generator shares its machine with what it measures.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from cluster.errors import InputError

clock = time.perf_counter
_STREAM = b"text/event-stream"


@dataclass(frozen=True)
class Address:
    """A server's URL in parts; `path` has the query string. With `socket` it is reached by that unix socket."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None = None
    name: str = ""
    """What its certificate must be for, with TLS."""
    socket: str = ""

    @classmethod
    def of(cls, url: str, *, name: str, trust: tuple[ssl.SSLContext, str] | None = None) -> Address:
        """The parts of a URL; `trust` says how a certificate is checked and for which name, else as this system does.

        Raises InputError, which calls the URL `name`.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise InputError(f"{name}: {url}: {error}; write http://HOST:PORT/PATH") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{name}: {url} is no HTTP address; write http://HOST:PORT/PATH")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if parts.scheme == "http":
            return cls(parts.hostname, port, path)
        context, known = trust or (ssl.create_default_context(), parts.hostname)
        return cls(parts.hostname, port, path, context, known)

    def request(self, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> bytes:
        """A whole POST, to be written as it is, with `headers` beside those that it needs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"host: {host}:{self.port}",
            f"content-type: {content_type}",
            f"content-length: {len(body)}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Shot:
    """One request: when it was due, sent, first answered and done (seconds of `clock`), and how that went.

    `status` is HTTP's, 0 where there was no whole answer; `fault` says why then. `pieces` are (time, bytes) of an event
    stream, or of any body that was to be kept.
    """

    __slots__ = ("done", "due", "fault", "first", "index", "pieces", "sent", "size", "status")

    def __init__(self, index: int, due: float, *, keep: bool = False) -> None:
        self.index, self.due = index, due
        self.sent = self.first = self.done = 0.0
        self.status = self.size = 0
        self.fault = ""
        self.pieces: list[tuple[float, bytes]] | None = [] if keep else None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300 and not self.fault

    @property
    def outcome(self) -> str:
        """ok, the status, or what went wrong: what errors are counted by."""
        return "ok" if self.ok else self.fault or str(self.status)

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces or ())


Done = Callable[["Connection", Shot], None]


class Connection(asyncio.Protocol):
    """Takes one request at a time; `usable` says whether it takes another. `done` is called once for each."""

    def __init__(self, done: Done, timeout_s: float) -> None:
        self.answered = done
        self.timeout_s = timeout_s
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.shot: Shot | None = None
        self.framed = self.closing = False

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.closing and self.shot is None

    def ask(self, shot: Shot, request: bytes) -> None:
        """Write a request. No other may be under way."""
        assert self.shot is None
        self.shot, self.framed = shot, False
        self.parser = httptools.HttpResponseParser(self)
        self.timer = self.loop.call_later(self.timeout_s, self._late)
        shot.sent = self.now = clock()
        if self.transport is None:  # closed since somebody looked
            self.loop.call_soon(self._end, "closed without an answer")
        else:
            self.transport.write(request)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # pyright: ignore[reportAttributeAccessIssue] - uvloop's is one, and inherits nothing

    def data_received(self, data: bytes) -> None:
        if self.shot is None:  # bytes that nobody asked for
            self.close()
            return
        self.now = clock()
        if not self.shot.first:
            self.shot.first = self.now
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("not HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.shot is not None:
            # An answer without a length ends with its connection.
            whole = self.shot.status and not self.framed and exc is None
            self.now = clock()
            self._end("" if whole else "closed in the middle" if self.shot.first else "closed without an answer")

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower in (b"content-length", b"transfer-encoding"):
            self.framed = True
        elif lower == b"content-type" and value.startswith(_STREAM) and self.shot is not None:
            self.shot.pieces = []

    def on_headers_complete(self) -> None:
        if self.shot is not None:
            self.shot.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.shot is not None:
            self.shot.size += len(body)
            if self.shot.pieces is not None:
                self.shot.pieces.append((self.now, body))

    def on_message_complete(self) -> None:
        if not self.parser.should_keep_alive():
            self.closing = True
        if self.shot is None or self.shot.status >= 200:  # after 100 Continue comes the answer
            self._end("")

    def _late(self) -> None:
        self.now = clock()
        self._end(f"no answer within {self.timeout_s:g} s")

    def _end(self, fault: str) -> None:
        shot, self.shot = self.shot, None
        if shot is None:
            return
        self.timer.cancel()
        shot.done, shot.fault = self.now, fault
        if fault or self.closing:
            self.closing = True
            self.close()
        self.answered(self, shot)


async def connect(address: Address, done: Done, timeout_s: float) -> Connection:
    """Open a connection. Raises OSError, TimeoutError."""
    loop = asyncio.get_running_loop()

    def made() -> Connection:
        return Connection(done, timeout_s)

    async with asyncio.timeout(min(timeout_s, 10)):
        if address.socket:
            return (await loop.create_unix_connection(made, address.socket))[1]
        name = address.name if address.tls is not None else None
        return (await loop.create_connection(made, address.host, address.port, ssl=address.tls, server_hostname=name))[
            1
        ]
