"""A model that does nothing, behind Shoal's own replica host, and behind plain FastAPI: what is left is the way there.

POST anything: the answer is []. POST .../v1/completions: an event stream of `max_tokens` events, `gap_ms` apart, each
as large as vLLM's. As a Serve application it is "noop:build"; `python tests/benchmarks/noop.py PORT` is FastAPI's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

_EVENT = {
    "id": "cmpl-0123456789abcdef0123456789abcdef",
    "object": "text_completion",
    "created": 1_700_000_000,
    "model": "noop",
    "choices": [{"index": 0, "text": " word", "logprobs": None, "finish_reason": None, "token_ids": None}],
    "usage": None,
}


async def events(asked: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """The pieces of a stream, each at its time: a late one does not make the next late."""
    count, gap = asked["max_tokens"], asked.get("gap_ms", 10) / 1000
    piece = b"data: " + json.dumps(_EVENT).encode() + b"\n\n"
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + (number + 1) * gap - loop.time()))
        yield piece
    usage = {**_EVENT, "choices": [], "usage": {"completion_tokens": count}}
    yield b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n"


class Noop:
    """The Serve deployment: as serve.app's Model, without a model."""

    def __init__(self) -> None:
        from serve.asgi import application
        from serve.host import Host

        self.host = Host(application(self.answer), version="noop")

    async def reconfigure(self, config: dict[str, Any]) -> None:
        if not self.host.tasks:
            await self.host.open()

    async def __del__(self) -> None:
        await self.host.close(5)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        from serve.asgi import read_body, respond

        body = await read_body(dict(scope["headers"]), receive, max_bytes=1 << 20)
        if not scope["path"].endswith("/v1/completions"):
            await respond(send, 200, b"[]")
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in events(json.loads(body)):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def build(args: Mapping[str, Any]) -> Any:
    from ray import serve

    return serve.deployment(name="Model")(Noop).bind()


def main() -> None:
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    app = FastAPI()

    async def predict(request: dict) -> list:
        return []

    async def completions(request: dict) -> Any:
        return StreamingResponse(events(request), media_type="text/event-stream")

    app.post("/predict")(predict)
    app.post("/v1/completions", response_model=None)(completions)
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)


if __name__ == "__main__":
    main()
