"""HTTP by hand, for the two hops of ours: read a body under a limit, answer in JSON. Starlette's objects cost more
than the work between them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from typing import Any, TypeVar

from cluster.errors import InputError, RunFailed, ShoalError, TooLarge

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
JSON = b"application/json"


PATIENCE_S = 0.1  # a client that goes away is looked for once its answer takes longer: most don't, and looking costs
T = TypeVar("T")


class Disconnected(Exception):
    """The client went away in the middle of its request: there is nobody to answer."""


async def read_body(headers: dict[bytes, bytes], receive: Receive, *, max_bytes: int) -> bytes:
    """A request's whole body. Raises TooLarge as soon as it is known to pass `max_bytes`; Disconnected."""
    if declared_length(headers) > max_bytes:
        raise too_large(max_bytes)
    message = await receive()
    body = message.get("body", b"")
    chunks = [body]
    size = len(body)
    while message.get("more_body", False):
        if size > max_bytes:
            raise too_large(max_bytes)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
    if size > max_bytes:
        raise too_large(max_bytes)
    return body if len(chunks) == 1 else b"".join(chunks)


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`, the request's body being read. Raises Disconnected where the client goes away before it is
    there, and what `work` raises; it is cancelled then, so that nobody computes for nobody."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    watching: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        if task is not None:
            task.cancel()

    def start() -> None:
        nonlocal watching
        watching = loop.create_task(watch())

    timer = loop.call_later(PATIENCE_S, start)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task is not None:
            task.uncancel()
            raise Disconnected from None
        raise
    finally:
        timer.cancel()
        if watching is not None:
            watching.cancel()


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The value of the first header of a name (in small letters), or nothing."""
    return next((value for key, value in headers if key == name), b"")


def declared_length(headers: dict[bytes, bytes]) -> int:
    """Content-Length, or 0 where there is none or none that is a number."""
    text = headers.get(b"content-length", b"")
    return int(text) if text.isdigit() else 0


def too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"the request is larger than {max_bytes / 2**20:g} MiB; send less, or raise http.max_body_mb in cluster.yaml"
    )


def encode(value: Any) -> bytes:
    """JSON of plain Python, NumPy and torch values. Raises RunFailed on NaN and infinity, which JSON does not have."""
    try:
        return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except ValueError:
        raise RunFailed("the model answered with a number that is none (NaN or infinity)") from None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, torch tensors
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def error_body(error: BaseException) -> tuple[int, bytes]:
    """Status and JSON body of an error. Only our own errors show their message: others may tell of our insides."""
    if isinstance(error, ShoalError):
        return error.status, encode({"error": error.message, "error_type": type(error).__name__})
    return 500, encode({"error": "the model failed on this request", "error_type": "InternalError"})


def read_json(body: bytes, *, wants: str) -> Any:
    """A body as plain Python. Raises InputError where it is empty or no JSON; `wants` says what the task takes."""
    if not body:
        raise InputError(f"the request is empty; this model takes {wants}")
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InputError(f"the request is not JSON; this model takes {wants}") from None


def _no_constant(text: str) -> Any:
    raise ValueError(text)


async def respond(
    send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = (), *, media: bytes = JSON
) -> None:
    """Send a whole answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", media), (b"content-length", b"%d" % len(body)), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})


def application(answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """An ASGI application of a coroutine that answers one HTTP request. A function, because uvicorn takes a bound
    method for the old kind of application."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            while True:  # nothing of ours hangs on start-up and shutdown
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        else:
            await send({"type": "websocket.close", "code": 1003})

    return app
