"""Clients that do not mean well, on plain sockets: what no HTTP library would send, and slower than any would."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from dataclasses import dataclass, field
from typing import Any

Address = tuple[str, int]


@dataclass
class Reply:
    """An answer: status (0: none came, and the connection was closed), headers in lower case, body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection. Reads in answers, one after the other; writes whatever it is given."""

    def __init__(self, address: Address, *, timeout_s: float = 10, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Whether it went out: False where the other end has closed."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def drip(self, data: bytes, *, every_s: float) -> float:
        """A byte at a time, until all went out or the other end has closed or answered; how many seconds it took."""
        began = time.monotonic()
        for index in range(len(data)):
            if not self.send(data[index : index + 1]) or self.readable(every_s):
                break
        return time.monotonic() - began

    def readable(self, wait_s: float) -> bool:
        """Whether an answer, or the end, is there within `wait_s` seconds."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(wait_s * 1000))

    def reply(self, *, to: str = "GET") -> Reply:
        """The next answer; `to` is the method, for HEAD has no body. Raises TimeoutError where none comes."""
        try:
            return self._reply(to)
        except ConnectionError:
            return Reply(0)

    def _reply(self, to: str) -> Reply:
        line = self.file.readline(65_536)
        if not line:
            return Reply(0)
        if not line.startswith(b"HTTP/1."):
            return Reply(-1, {}, line)
        status = int(line.split()[1])
        headers: dict[str, str] = {}
        while (line := self.file.readline(65_536).strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if status < 200:
            return Reply(status, headers)
        if to == "HEAD" or status == 204:
            return Reply(status, headers)
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.file.readline().partition(b";")[0], 16):
                body += self.file.read(size)
                self.file.readline()
            self.file.readline()
            return Reply(status, headers, body)
        if "content-length" in headers:
            return Reply(status, headers, self.file.read(int(headers["content-length"])))
        return Reply(status, headers, self.file.read())

    def replies(self) -> list[Reply]:
        """All answers until the other end closes, or says nothing for the socket's timeout."""
        found = []
        with contextlib.suppress(TimeoutError, OSError, ValueError):
            while (one := self.reply()).status > 0:
                found.append(one)
        return found


def ask(address: Address, data: bytes, *, to: str = "GET", timeout_s: float = 10) -> Reply:
    """One request as it stands, and what comes back first. Raises TimeoutError where nothing does."""
    with Wire(address, timeout_s=timeout_s) as wire:
        wire.send(data)
        return wire.reply(to=to)


def request(path: str, body: bytes = b"", *, method: str = "POST", headers: str = "") -> bytes:
    """A plain request, with more `headers` (each ends in \\r\\n)."""
    length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nHost: shoal\r\n{length}{headers}\r\n".encode("latin-1") + body


def smuggled(path: str, hidden: bytes) -> dict[str, bytes]:
    """Requests whose end two parsers may see in two places, with `hidden` (a request) in what one of them takes for the
    body. From the public catalogues of request smuggling (RFC 9112, 11.2)."""
    head = f"POST {path} HTTP/1.1\r\nHost: shoal\r\n".encode()
    end = b"0\r\n\r\n" + hidden
    both = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(end)
    return {
        "length and chunked": head + both + end,
        "chunked, and a length that ends early": head
        + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden),
        "two lengths": head + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden,
        "a list of lengths": head + b"Content-Length: 0, %d\r\n\r\n" % len(hidden) + hidden,
        "a signed length": head + b"Content-Length: +%d\r\n\r\n" % len(hidden) + hidden,
        "a length in hexadecimal": head + b"Content-Length: 0x10\r\n\r\n" + hidden,
        "a negative length": head + b"Content-Length: -1\r\n\r\n" + hidden,
        "a length beyond 64 bits": head + b"Content-Length: 99999999999999999999\r\n\r\n" + hidden,
        "another coding last": head + b"Transfer-Encoding: chunked, identity\r\n\r\n" + end,
        "an odd name of the coding": head + b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n" + end,
        "a tab before the coding": head + b"Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n" + end,
        "a space before the colon": head + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n" + end,
        "a vertical tab": head + b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n" + end,
        "a folded line": head + b"X-A: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + end,
        "a folded coding": head + b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n" + end,
        "bare line feeds": head.replace(b"\r\n", b"\n")
        + b"Content-Length: 5\nTransfer-Encoding: chunked\n\n"
        + end.replace(b"\r\n", b"\n"),
        "a bare carriage return": head + b"X-A: a\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + end,
        "a chunk size with a sign": head + b"Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n" + hidden,
        "a chunk size that wraps": head + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + end,
        "a chunk extension with a line feed": head + b"Transfer-Encoding: chunked\r\n\r\n0;a\nb\r\n\r\n" + hidden,
        "a chunk without its end": head + b"Transfer-Encoding: chunked\r\n\r\n1\r\naXX0\r\n\r\n" + hidden,
        "trailers": head + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 50\r\n\r\n" + hidden,
        "a body in a GET": b"GET /health HTTP/1.1\r\nHost: shoal\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden,
        "HTTP/1.0 with chunks": head.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + end,
        "a NUL in a name": head + b"Content-Length\0: 0\r\n\r\n" + hidden,
        "a space in the first line": b"POST %s  HTTP/1.1\r\nHost: shoal\r\nContent-Length: 0\r\n\r\n" % path.encode()
        + hidden,
    }


def garbage() -> dict[str, bytes]:
    """What is no HTTP/1.1, by name."""
    return {
        "HTTP/0.9": b"GET /models\r\n",
        "HTTP/1.0 without a host": b"GET /models HTTP/1.0\r\n\r\n",
        "a version of the future": b"GET /models HTTP/9.9\r\nHost: a\r\n\r\n",
        "no version": b"GET /models HTTP\r\n\r\n",
        "a TLS hello": bytes.fromhex("16030100a5010000a10303") + bytes(160),
        "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
        "the PROXY protocol": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /models HTTP/1.1\r\nHost: a\r\n\r\n",
        "zeros": bytes(3000),
        "noise": bytes(range(256)) * 20,
        "no host": b"GET /models HTTP/1.1\r\n\r\n",
        "two hosts": b"GET /models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "a NUL in the path": b"GET /mod\0els HTTP/1.1\r\nHost: a\r\n\r\n",
        "a header without a colon": b"GET /models HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n",
        "a header without a name": b"GET /models HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        "a NUL in a header": b"GET /models HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "an unknown method of 10,000 letters": b"A" * 10_000 + b" /models HTTP/1.1\r\nHost: a\r\n\r\n",
        "a method of symbols": b"G(T /models HTTP/1.1\r\nHost: a\r\n\r\n",
    }
