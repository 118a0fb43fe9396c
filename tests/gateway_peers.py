"""Small servers that misbehave, on real sockets: each connection's bytes are answered by a script."""

from __future__ import annotations

import asyncio
import contextlib
import re
from contextlib import asynccontextmanager

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """`script(server, reader, writer)` is run for each connection."""

    def __init__(self, script, path):
        self.script, self.path = script, str(path)
        self.connections = 0
        self.requests: list[bytes] = []
        self.open = 0

    async def request(self, reader):
        """One request's body, however it is framed; None at the end."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        body = b""
        if found := re.search(rb"content-length: (\d+)", head):
            body = await reader.readexactly(int(found[1]))
        else:
            while size := int((await reader.readline()).strip(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        self.requests.append(body)
        return body

    async def handle(self, reader, writer):
        self.connections += 1
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.script(self, reader, writer)
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(script, path):
    server = Server(script, path)
    listening = await asyncio.start_unix_server(server.handle, server.path)
    try:
        yield server
    finally:
        listening.close()


async def answers(server, reader, writer):
    """As it should be: one answer a request, as long as the connection lasts."""
    while await server.request(reader) is not None:
        writer.write(OK)
        await writer.drain()
