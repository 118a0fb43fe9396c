"""A request on its way to a model, and the ways in which it is answered."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serve.asgi import Scope, Send
from serve.gateway.answer import Answer
from serve.gateway.body import Body

# An answer up to this size goes out in one piece.
WHOLE_BYTES = 1_048_576
_PASSED_BACK = frozenset((b"content-type", b"content-length", b"content-encoding", b"retry-after"))
Headers = tuple[tuple[bytes, bytes], ...]
Refuse = Callable[[Send, int, str, str, Headers], Awaitable[None]]


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
    sent: bool = False
    """A replica has it, or had it."""
    begun: bool = False
    mark: str = ""
    """Its fingerprint, where one was wanted."""
    asked: float = 0.0
    """When it was last sent to a replica, by time.perf_counter; 0 before."""
    again: bool = True
    """Whether it may go to a second replica after it was sent to one."""
    held: bool = True
    """Whether it waits where no replica is up; it is refused otherwise."""
    answered_by: str = ""
    """Id of the replica whose answer went back."""
    limit: asyncio.Timeout | None = None
    held_until: float | None = None
    """Once it has waited for a replica: until when it may, by the loop's clock."""

    @property
    def application(self) -> str:
        return self.model.get("application", self.name)


async def busy(errand: Errand, seconds: int) -> None:
    # Clients of the Hugging Face routes retry a 503 at once and without end, hence 429.
    message = f"{errand.name}: every replica is busy, or none is up; try again after the time in Retry-After"
    await errand.refuse(errand.send, 429, message, "Overloaded", ((b"retry-after", b"%d" % seconds),))


async def poison(errand: Errand, seconds: float) -> None:
    message = (
        f"{errand.name}: this request (fingerprint {errand.mark[:12]}) was at work on two replicas as each died; "
        f"the same bytes are refused for {seconds / 60:.0f} minutes more; send another request, and look into the logs"
    )
    await errand.refuse(errand.send, 422, message, "PoisonRequest", ())


@functools.cache
def printable(version: str) -> bytes:
    """A version as a header can hold it; there are as many as are served."""
    return "".join(one if "!" <= one <= "~" else "?" for one in version).encode()


async def pass_back(answer: Answer, errand: Errand) -> None:
    """Send an answer on: in one piece where it is small, else as it comes."""
    headers = [pair for pair in answer.headers if pair[0] in _PASSED_BACK]
    headers.append((b"x-shoal-version", printable(errand.model["version"])))
    start = {"type": "http.response.start", "status": answer.status, "headers": headers}
    send = errand.send
    if answer.status == 503:
        await answer.read()
        return await busy(errand, 1)
    if answer.status >= 500 and not answer.get(b"content-type").startswith(b"application/json"):
        # What the server says in its own words where ours found none.
        await answer.read()
        text = f"{errand.name}: the replica failed on this request"
        return await errand.refuse(send, 500, text, "InternalError", ())
    length = answer.length
    if length is not None and length <= WHOLE_BYTES:
        content = await answer.read()
        errand.begun = True
        await send(start)
        return await send({"type": "http.response.body", "body": content})
    errand.begun = True
    await send(start)
    async for chunk in answer.chunks():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    return await send({"type": "http.response.body", "body": b""})
