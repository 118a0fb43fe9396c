"""A real HTTP server with known faults, for the tests of `shoal bench`: python tests/bench_server.py PORT.

What a request gets stands in its path: /delay/MS, /fail/N (each Nth is a 500), /stall/S (S seconds after its first
request the whole server stands still for a second, once), /close, /label/SCORE, /work/MS (of CPU time),
/v1/completions (an event stream; `max_tokens` of them, `gap_ms` apart, with the faults named in `fault`). GET /seen:
which bodies came, by path.
"""

from __future__ import annotations

import asyncio
import collections
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from aiohttp import web

from cluster import ports

COUNTS: collections.Counter[str] = collections.Counter()
STALLS: dict[str, float] = {}
SEEN: list[tuple[str, str]] = []


async def answer(request: web.Request) -> web.StreamResponse:
    kind, _, argument = request.path.lstrip("/").partition("/")
    body = (await request.read()).decode()
    COUNTS[request.path] += 1
    SEEN.append((request.path_qs, body))
    match kind:
        case "delay":
            await asyncio.sleep(float(argument) / 1000)
        case "fail" if COUNTS[request.path] % int(argument) == 0:
            return web.json_response({"error": "as was asked for"}, status=500)
        case "stall" if time.monotonic() > STALLS.setdefault(request.path, time.monotonic() + float(argument)):
            STALLS[request.path] = float("inf")
            time.sleep(1)
        case "close":
            assert request.transport is not None
            request.transport.close()
        case "label":
            return web.json_response([[{"label": "ham", "score": float(argument)}]])
        case "work":
            end = time.thread_time() + float(argument) / 1000
            while time.thread_time() < end:
                pass
    return web.json_response({"ok": True})


async def completions(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    fault = asked.get("fault", "")
    stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await stream.prepare(request)

    async def event(value: object) -> None:
        data = b"data: " + json.dumps(value).encode() + b"\n\n"
        await stream.write(data[:9])  # an event in two pieces
        await stream.write(data[9:])

    await event({"choices": [{"text": ""}]})  # no token yet, as chat streams begin
    for number in range(asked["max_tokens"]):
        await asyncio.sleep(asked.get("gap_ms", 10) / 1000)
        await event({"choices": [{"text": f"w{number} "}]})
    if fault == "error":
        await event({"error": {"message": "as was asked for"}})
    if fault != "no usage":
        # Speculative decoding puts more than one token into an event.
        await event({"choices": [], "usage": {"completion_tokens": 2 * asked["max_tokens"]}})
    if fault != "cut":
        await stream.write(b"data: [DONE]\n\n")
    return stream


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "tiny"}]})


async def seen(request: web.Request) -> web.Response:
    return web.json_response(SEEN)


@contextmanager
def running(number: int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The server in a process of its own: its URL, no slash at the end, and the process."""
    number = number or ports.pick(1)[0]
    child = subprocess.Popen([sys.executable, __file__, str(number)])
    try:
        url = f"http://127.0.0.1:{number}"
        for _ in range(200):
            try:
                httpx.get(f"{url}/v1/models", timeout=5)
                break
            except httpx.HTTPError:
                assert child.poll() is None
                time.sleep(0.1)
        yield url, child
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/seen", seen)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/{path:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
