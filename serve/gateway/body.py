"""A request's body at the gateway: held whole while it is small, so that it can be sent again, else streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cluster.errors import ShoalError
from serve.asgi import Disconnected, Message, Receive, too_large

# A body up to this size is read before a replica is asked.
HELD_BYTES = 4_194_304
# And one of which no more than this has gone out can be sent again: a replica that leaves says so before it has had
# more of it than lies in sockets.
KEPT_BYTES = 8_388_608


class Body:
    """A request's body: `whole` where it is small, else what is there yet and what streams the rest. `kept`: all of it
    can be sent again, from the start."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self.receive = receive
        self.max_bytes = max_bytes
        self.whole: bytes | None = None
        self.chunks: list[bytes] = []
        self.size = 0
        self.more = True
        self.kept = True
        self.fault: Exception | None = None

    @classmethod
    async def take(cls, receive: Receive, max_bytes: int) -> Body:
        """Read until the end, or until there is more than is held. Raises TooLarge, Disconnected."""
        body = cls(receive, max_bytes)
        while body.more and body.size <= HELD_BYTES:
            body.chunks.append(await body._next())
        if not body.more:
            body.whole = body.chunks[0] if len(body.chunks) == 1 else b"".join(body.chunks)
        return body

    @classmethod
    def of(cls, content: bytes, receive: Receive) -> Body:
        """A body that was read already."""
        body = cls(receive, len(content))
        body.whole, body.more, body.size = content, False, len(content)
        return body

    async def stream(self) -> AsyncIterator[bytes]:
        """All of it, from the start. A fault is kept in `fault` as well: it is the client's, not the replica's."""
        for chunk in [*self.chunks]:
            yield chunk
        try:
            while self.more:
                chunk = await self._next()
                if self.kept and self.size <= KEPT_BYTES:
                    self.chunks.append(chunk)
                else:
                    self.kept = False
                    self.chunks.clear()
                yield chunk
        except (ShoalError, Disconnected) as error:
            self.fault = error
            raise

    async def gone(self) -> None:
        """Return when the client goes away; to be asked once the whole body is there."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def _next(self) -> bytes:
        message: Message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk: bytes = message.get("body", b"")
        self.more = message.get("more_body", False)
        self.size += len(chunk)
        if self.size > self.max_bytes:
            raise too_large(self.max_bytes)
        return chunk
