"""One request's stay at the gateway, around whatever answers it: who asks, under which id, what passes by, and in the
end what it came to. The parts that decide are in serve.keys; here they meet the HTTP messages.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from cluster import tasks
from cluster.errors import ShoalError
from serve.asgi import Disconnected, Message, Receive, Scope, Send
from serve.keys.gatekeeper import Caller, Gatekeeper, Ticket, request_id
from serve.keys.tokens import Stream, read_usage

if TYPE_CHECKING:
    from serve.gateway.errand import Errand

_KEY = "shoal.visit"
_FREE = ("/health", "/-/")
_NOBODY = Caller(None)
LEFT, BROKEN = 499, 500
Answer = Callable[[Scope, Receive, Send], Awaitable[None]]
Say = Callable[[ShoalError, Scope, Send], Awaitable[None]]
Models = Mapping[str, Mapping[str, Any]]


class Visit:
    """A request. `errand` is what was made of it, where it went on to a model."""

    __slots__ = ("caller", "errand", "headers", "id", "keeper", "ticket", "usage_hidden")

    def __init__(self, keeper: Gatekeeper | None, scope: Scope) -> None:
        self.keeper = keeper
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.id = request_id(self.headers)
        self.caller = _NOBODY
        self.ticket: Ticket | None = None
        self.errand: Errand | None = None
        self.usage_hidden: bool | None = None
        """Whether the event of a stream's usage is ours alone; None where answers tell no usage."""

    def visible(self, models: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The models that there are for whoever asks."""
        hidden = {
            name
            for name, model in models.items()
            if model.get("private") and not self.caller.sees(_own(name), private=True)
        }
        return {name: model for name, model in models.items() if name not in hidden} if hidden else models

    async def admit(self, name: str, model: Mapping[str, Any]) -> None:
        """Let it go on to a model. Raises what Gatekeeper.admit does. Said twice it counts once."""
        if self.keeper is not None and self.ticket is None:
            private = bool(model.get("private"))
            self.ticket = await self.keeper.admit(self.caller, _own(name), private=private, request_id=self.id)


def of(scope: Scope) -> Visit:
    """The visit that a request is part of."""
    return scope.get(_KEY) or Visit(None, scope)


async def around(
    keeper: Gatekeeper | None, answer: Answer, say: Say, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer a request as part of a visit; `say` tells a client of an error in the shape of its route."""
    began, status, size = time.perf_counter(), LEFT, 0
    visit = scope[_KEY] = Visit(keeper, scope)
    if visit.headers.get(b"x-request-id") != visit.id.encode():
        # The replica is to know it as well.
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
        scope["headers"].append((b"x-request-id", visit.id.encode()))
    added = ((b"x-request-id", visit.id.encode()), *(keeper.cors.headers(visit.headers) if keeper is not None else ()))
    stream: Stream | None = None
    usage: tuple[int, int] | None = None

    async def passing(message: Message) -> None:
        nonlocal status, size, stream, usage
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = message["headers"] = [*message["headers"], *added]
            if visit.usage_hidden is not None and status == 200 and _streams(headers):
                sent = visit.errand.body.size if visit.errand is not None else 0
                stream = Stream(sent, hidden=visit.usage_hidden)
        else:
            body = message.get("body", b"")
            more = message.get("more_body", False)
            if stream is not None:
                body = stream.feed(body) if more else stream.feed(body) + stream.end()
                if more and not body:
                    return
                message["body"] = body
            elif visit.usage_hidden is not None and body:
                usage = read_usage(body) or usage
            size += len(body)
        await send(message)

    try:
        if keeper is not None and (allowed := keeper.cors.preflight(scope["method"], visit.headers)) is not None:
            await passing({"type": "http.response.start", "status": 204, "headers": list(allowed)})
            return await passing({"type": "http.response.body", "body": b""})
        try:
            if keeper is not None and not scope["path"].startswith(_FREE):
                visit.caller = await keeper.identify(visit.headers, request_id=visit.id)
        except ShoalError as error:
            return await say(error, scope, passing)
        return await answer(scope, receive, passing)
    except Disconnected:
        status = LEFT
        raise
    except Exception:
        status = BROKEN
        raise
    finally:
        if keeper is not None and visit.ticket is not None:
            told = stream.tokens() if stream is not None else usage or (0, 0)
            counted = stream is None or stream.counted
            _settle(keeper, visit, status, time.perf_counter() - began, size, told, counted)


def _settle(
    keeper: Gatekeeper, visit: Visit, status: int, seconds: float, size: int, tokens: tuple[int, int], counted: bool
) -> None:
    errand, ticket = visit.errand, visit.ticket
    assert ticket is not None
    facts: dict[str, Any] = {}
    if errand is not None:
        facts = {
            "version": errand.model.get("version", ""),
            "replica": errand.answered_by,
            # What a request waited here for a replica is not the model's work.
            "compute_seconds": time.perf_counter() - errand.asked if errand.asked else 0.0,
            "bytes_in": errand.body.size,
            "images": _images(errand),
            "body": errand.body.whole if keeper.wants_inputs else None,
        }
    keeper.settle(ticket, status=status, seconds=seconds, tokens=tokens, counted=counted, bytes_out=size, **facts)


def _images(errand: Errand) -> int:
    """Pictures in a request: one for a task of pictures; those that a chat's message names."""
    if tasks.get(errand.model["task"]).modality == "vision":
        return 1
    body = errand.body.whole
    return body.count(b'"image_url":{') + body.count(b'"image_url": {') if errand.route and body is not None else 0


def _streams(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def _own(name: str) -> str:
    """The model that a key is for, of a name such as other:reviews or reviews:base: what stands in the file."""
    first, _, second = name.partition(":")
    return first if second in ("", "base") else second
