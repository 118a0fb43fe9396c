"""A client that sends its body a byte a second is cut off: it may take so long, and as long again for every so much."""

from __future__ import annotations

import asyncio

from cluster.errors import TooSlow
from serve.asgi import Message, Receive

# As much of a body earns one more `timeout_s`: 17 KiB a second with the 15 s of the default.
PORTION = 262_144
# Answers to requests that have not come whole, and the header that keeps what is missing from being waited for.
CUT_OFF = (408, 413)
CUT = ((b"connection", b"close"),)


class Paced:
    """A request's `receive`, that raises TooSlow where the client has kept it waiting for too long in all.

    Only waiting for the client counts: not the time in which nobody asks, because a replica is slow to take what there
    is. Once the body is whole nothing counts any more: what is waited for then is that the client goes away.
    """

    __slots__ = ("more", "receive", "size", "timeout_s", "waited")

    def __init__(self, receive: Receive, timeout_s: float) -> None:
        self.receive = receive
        self.timeout_s = timeout_s
        self.size = 0
        self.waited = 0.0
        self.more = True

    async def __call__(self) -> Message:
        if not self.more:
            return await self.receive()
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self.timeout_s * (1 + self.size / PORTION) - self.waited):
                message = await self.receive()
        except TimeoutError:
            raise TooSlow(
                f"the request's body did not come in time: {self.size} bytes in {self.waited + clock() - began:.0f} s; "
                f"send at least {PORTION >> 10} KiB in {self.timeout_s:g} s (http.send_timeout_s in cluster.yaml)"
            ) from None
        self.waited += clock() - began
        self.size += len(message.get("body", b""))
        self.more = message.get("more_body", False)
        return message
