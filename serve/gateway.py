"""The way in: routes by model, passes bytes on, turns whatever goes wrong behind it into one kind of JSON.

Hosted by Serve as raw ASGI, without a framework, and never imports torch. What it knows of the models comes by
`user_config`, so adding or removing one restarts nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp
from ray import serve

from cluster.engine import TASK
from cluster.errors import InputError, NotFound, ShoalError
from cluster.monitoring.record import Requests
from serve import openai_routes
from serve.asgi import (
    Disconnected,
    Message,
    Receive,
    Scope,
    Send,
    application,
    declared_length,
    encode,
    error_body,
    respond,
    too_large,
)
from serve.openapi import document

# A body up to this size is held, so that it can be sent again where a connection turns out to be dead.
HELD_BYTES = 262_144
# An answer up to this size goes out in one piece.
WHOLE_BYTES = 1_048_576
_PASSED_ON = (b"content-type", b"content-encoding", b"accept", b"x-request-id")
_PASSED_BACK = ("content-type", "content-length", "content-encoding", "retry-after")
_RETRY = ((b"retry-after", b"1"),)


class Gateway:
    """One replica of the gateway; see `answer` for the routes."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}
        self.session: aiohttp.ClientSession | None = None
        self.requests = Requests()

    def reconfigure(self, config: dict[str, Any]) -> None:
        """The models ({name: {task, version, request, response, timeout_s}}, and `application` where a model is served
        by another one's), where they are, and the size limit."""
        self.models = config["models"]
        self.requests.serves(self.models)
        self.upstream: str = config["upstream"]
        self.public_url: str = config["public_url"]
        self.max_bytes = int(config["max_body_mb"] * 2**20)

    async def __serve_build_asgi_app__(self) -> Any:
        return application(self.requests.measured(self.answer))

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /models/NAME; GET /models, /models/NAME, /health, /openapi.json; /v1 is OpenAI's; 404 for all else."""
        method, path = scope["method"], scope["path"]
        if (found := openai_routes.split(path)) is not None:
            await openai_routes.answer(self, *found, scope, receive, send)
            return
        try:
            if method == "POST" and path.startswith("/models/"):
                await self.forward(self.find(path[len("/models/") :]), scope, receive, send)
            elif method in ("GET", "HEAD"):
                await respond(send, 200, encode(self.show(path)))
            elif path in ("/models", "/health", "/openapi.json") or path.startswith("/models/"):
                allow = b"GET, POST" if path.startswith("/models/") else b"GET"
                body = encode({"error": f"{method} {path}: send a {allow.decode()}", "error_type": "MethodNotAllowed"})
                await respond(send, 405, body, ((b"allow", allow),))
            else:
                raise NotFound(_NOWHERE.format(path=path[:200]))
        except ShoalError as error:
            status, body = error_body(error)
            await respond(send, status, body)
        except Disconnected:
            return

    def find(self, name: str) -> str:
        """The name, where there is such a model. Raises NotFound, naming the nearest."""
        if name in self.models:
            return name
        if not self.models:
            raise NotFound(f"model {name[:200]!r}: none is served; `shoal serve FILE` serves one")
        near = difflib.get_close_matches(name[:200], self.models, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"these are served: {', '.join(sorted(self.models)[:20])}"
        raise NotFound(f"model {name[:200]!r} is not served; {hint}")

    def show(self, path: str) -> Any:
        """What a GET answers. Raises NotFound."""
        if path == "/health":
            return {"status": "ok", "models": len(self.models)}
        if path == "/models":
            return [self.describe(name) for name in sorted(self.models)]
        if path == "/openapi.json":
            return document(self.models)
        if path.startswith("/models/"):
            return self.describe(self.find(path[len("/models/") :]))
        raise NotFound(_NOWHERE.format(path=path[:200]))

    def describe(self, name: str) -> dict[str, Any]:
        model = self.models[name]
        facts = {key: model[key] for key in ("task", "version", "request", "response")}
        return {"name": name, "url": f"{self.public_url}/models/{name}", "state": "ready", **facts}

    async def forward(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the model's application and its answer back. Bytes are looked at by nobody here."""
        if self.models[name]["task"] == TASK:
            raise InputError(f"{name} is a language model; POST /v1/chat/completions or /v1/completions asks it")
        if declared_length(dict(scope["headers"])) > self.max_bytes:
            raise too_large(self.max_bytes)
        body = await Body.take(receive, self.max_bytes)
        await self.pass_on(name, "", body, scope, send, _refuse)

    async def pass_on(
        self, name: str, route: str, content: Body | bytes, scope: Scope, send: Send, refuse: Refuse
    ) -> None:
        """Send a body to a route of the model's application, and the answer back; `refuse` says what went wrong."""
        self.requests.routed(scope, name)
        body = content if isinstance(content, Body) else Body.of(content)
        headers = dict(scope["headers"])
        passed = {key.decode("latin-1"): headers[key].decode("latin-1") for key in _PASSED_ON if key in headers}
        query = scope["query_string"]
        application = self.models[name].get("application", name)
        url = f"{self.upstream}/m/{application}{route}" + (f"?{query.decode('latin-1')}" if query else "")
        # The replica itself answers in time; a second more is for what hangs on the way.
        timeout = aiohttp.ClientTimeout(total=self.models[name]["timeout_s"] + 1, sock_connect=5)
        session = self.session or self._open_session()
        way = Way(send)
        try:
            while True:
                data = body.stream() if body.whole is None else body.whole
                try:
                    async with session.post(url, data=data, headers=passed, timeout=timeout) as answer:
                        if answer.status >= 400 or (answer.content_length or WHOLE_BYTES + 1) <= WHOLE_BYTES:
                            return await _pass_back(answer, await answer.read(), name, way, refuse)
                        return await _stream_back(answer, way)
                except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                    # A kept connection that the proxy closed as the request went out: nobody saw it, send it again.
                    if body.whole is None or body.tried or way.begun:
                        raise
                    body.tried = True
        except TimeoutError:
            if way.begun:
                raise  # the connection is cut: an answer that ends well would look whole
            message = f"{name}: no answer in time; raise serve.request_timeout_s, or send less"
            await refuse(send, 504, message, "Timeout", ())
        except aiohttp.ClientError:
            if body.fault is not None:
                raise body.fault from None
            if way.begun:
                raise
            await refuse(send, 502, f"{name}: its replica went away; send the request again", "Unavailable", ())

    def _open_session(self) -> aiohttp.ClientSession:
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        return self.session


_NOWHERE = "{path}: nothing here; POST /models/NAME, GET /models, /health and /openapi.json, and OpenAI's /v1 are"
Refuse = Callable[[Send, int, str, str, tuple[tuple[bytes, bytes], ...]], Awaitable[None]]


class Way:
    """The way back to the client, which knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        await self.send(message)


class Body:
    """A request's body: `whole` where it is small, else what is there yet and what streams the rest."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self.receive = receive
        self.max_bytes = max_bytes
        self.whole: bytes | None = None
        self.chunks: list[bytes] = []
        self.size = 0
        self.more = True
        self.tried = False
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
    def of(cls, content: bytes) -> Body:
        """A body that was read already."""
        body = cls(_nothing, len(content))
        body.whole, body.more = content, False
        return body

    async def stream(self) -> AsyncIterator[bytes]:
        """All of it, once. A fault is kept in `fault`: aiohttp reports it as a broken connection of its own."""
        yield b"".join(self.chunks)
        self.chunks.clear()
        try:
            while self.more:
                yield await self._next()
        except (ShoalError, Disconnected) as error:
            self.fault = error
            raise

    async def _next(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk: bytes = message.get("body", b"")
        self.more = message.get("more_body", False)
        self.size += len(chunk)
        if self.size > self.max_bytes:
            raise too_large(self.max_bytes)
        return chunk


async def _nothing() -> Message:
    raise Disconnected


async def _pass_back(answer: aiohttp.ClientResponse, content: bytes, name: str, send: Send, refuse: Refuse) -> None:
    """Send a whole answer on. What Serve and its proxy say in plain text is said again in our JSON."""
    ours = answer.headers.get("content-type", "").startswith("application/json")
    if answer.status == 503 or (answer.status in (408, 429, 500, 502, 504) and not ours):
        # Clients of the Hugging Face routes retry a 503 at once and without end; a full queue and a missing replica
        # are told as 429 with a time to wait.
        message = f"{name}: every replica is busy, or none is up; try again after the time in Retry-After"
        await refuse(send, 429, message, "Overloaded", _RETRY)
    elif answer.status == 404 and not ours:
        await refuse(send, 404, f"model {name!r} is not served any more", "NotFound", ())
    else:
        await send({"type": "http.response.start", "status": answer.status, "headers": _back(answer)})
        await send({"type": "http.response.body", "body": content})


async def _stream_back(answer: aiohttp.ClientResponse, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": _back(answer)})
    async for chunk in answer.content.iter_any():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _back(answer: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    given = answer.headers
    return [(key.encode("latin-1"), given[key].encode("latin-1")) for key in _PASSED_BACK if key in given]


async def _refuse(
    send: Send, status: int, message: str, kind: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    await respond(send, status, encode({"error": message, "error_type": kind}), headers)


def build(args: Mapping[str, Any]) -> serve.Application:
    """The gateway's application. Nothing is in `args` but which attempt it is; see cluster.serving."""
    deployment = serve.deployment(name="Gateway", max_constructor_retry_count=2, max_surge_percent=100)
    return deployment(serve.ingress()(Gateway)).bind()
