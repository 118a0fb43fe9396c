"""The gateway in this process, as the ASGI application that it is, before replicas that are real servers: no Ray."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import serve_tiny as tiny
from aiohttp import web

from serve.asgi import application
from serve.gateway.app import Gateway


def entry(task="text-classification", timeout_s: float = 20):
    return {"task": task, "version": "models:/a/1", "request": "{inputs}", "response": "[[]]", "timeout_s": timeout_s}


@asynccontextmanager
async def gateway(handler, *, timeout_s: float = 20, max_body_mb=1):
    """A client of a gateway that knows of `reviews` and `flowers`, in front of `handler`."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    way = Gateway()
    models = {"reviews": entry(timeout_s=timeout_s), "flowers": entry("tabular-classification")}
    url = f"http://127.0.0.1:{port}"
    way.learn({"models": models, "public_url": url, "max_body_mb": max_body_mb})
    tiny.replicas(way, url, "reviews", "flowers")
    transport = httpx.ASGITransport(application(way.answer))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
    await runner.cleanup()


async def echo(request):
    body = await request.read()
    return web.json_response(
        {
            "path": request.path_qs,
            "size": len(body),
            "type": request.headers.get("content-type"),
            "tail": body[-5:].hex(),
        }
    )


def test_bytes_and_query_go_through_unchanged():
    async def main():
        async with gateway(echo) as client:
            body = bytes(range(256)) * 3000  # 768,000: streamed, not held
            answer = await client.post("/models/reviews?top_k=2", content=body, headers={"content-type": "image/png"})
            assert answer.status_code == 200
            expected = {"path": "/?top_k=2", "size": len(body), "type": "image/png", "tail": body[-5:].hex()}
            assert answer.json() == expected

            async def pieces():
                for start in range(0, len(body), 100_000):
                    yield body[start : start + 100_000]

            answer = await client.post("/models/reviews", content=pieces())
            assert (answer.json()["size"], answer.json()["tail"]) == (len(body), body[-5:].hex())

    asyncio.run(main())


def test_too_large_a_body_is_413_declared_or_streamed():
    async def main():
        async with gateway(echo) as client:
            answer = await client.post("/models/reviews", content=b"a" * (2**20 + 1))
            assert answer.status_code == 413
            assert "http.max_body_mb" in answer.json()["error"]

            async def pieces():
                for _ in range(30):
                    yield b"a" * 100_000

            answer = await client.post("/models/reviews", content=pieces())
            assert answer.status_code == 413
            assert answer.json()["error_type"] == "TooLarge"

    asyncio.run(main())


def test_what_is_not_there_is_404_with_the_nearest():
    async def main():
        async with gateway(echo) as client:
            answer = await client.post("/models/review", json={})
            assert (answer.status_code, answer.json()["error_type"]) == (404, "NotFound")
            assert "did you mean reviews?" in answer.json()["error"]
            for path in ("/models/org/reviews", "/models/", "/models/..%2fm%2freviews"):
                answer = await client.post(path, json={})
                assert (answer.status_code, answer.json()["error_type"]) == (404, "NotFound"), path
            for path in ("/", "/nothing", "/models/nope", "/m/reviews"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["error_type"]) == (404, "NotFound"), path
            answer = await client.put("/models/reviews", json={})
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")

    asyncio.run(main())


def test_a_full_queue_and_a_missing_replica_are_429_with_retry_after():
    """JS clients retry a 503 at once and for ever: one must never come out."""
    asked = []

    async def busy(request):
        asked.append(1)
        said = {"x-shoal": "busy"} if len(asked) <= 2 else {}
        return web.Response(status=503, headers=said)

    async def main():
        async with gateway(busy) as client:
            for times in (2, 3):  # both replicas are asked where they say that they are full
                answer = await client.post("/models/reviews", json={})
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
                assert (answer.json()["error_type"], len(asked)) == ("Overloaded", times)

    asyncio.run(main())


def test_our_own_errors_come_through_as_they_are():
    async def wrong(request):
        return web.json_response({"error": "no", "error_type": "InputError"}, status=400)

    async def main():
        async with gateway(wrong) as client:
            answer = await client.post("/models/reviews", json={})
            assert (answer.status_code, answer.json()) == (400, {"error": "no", "error_type": "InputError"})

    asyncio.run(main())


def test_no_answer_in_time_is_504():
    async def slow(request):
        await asyncio.sleep(1.5)
        return web.Response()

    async def main():
        async with gateway(slow, timeout_s=-0.8) as client:  # a second is added for the way
            answer = await client.post("/models/reviews", json={})
            assert (answer.status_code, answer.json()["error_type"]) == (504, "Timeout")

    asyncio.run(main())


def test_a_connection_that_dies_is_tried_once_more():
    seen = []

    async def dying(request):
        seen.append(await request.read())
        if len(seen) == 1:
            request.transport.abort()
        return web.json_response(["answer"])

    async def main():
        async with gateway(dying) as client:
            answer = await client.post("/models/reviews", content=b"body")
            assert (answer.status_code, answer.json()) == (200, ["answer"])
            assert seen == [b"body", b"body"]

    asyncio.run(main())


def test_a_request_that_always_kills_is_422_after_two_tries():
    seen = []

    async def dying(request):
        seen.append(1)
        request.transport.abort()

    async def main():
        async with gateway(dying) as client:
            answer = await client.post("/models/reviews", content=b"body")
            assert (answer.status_code, answer.json()["error_type"], len(seen)) == (422, "PoisonRequest", 2)

    asyncio.run(main())


def test_models_health_and_openapi():
    async def main():
        async with gateway(echo) as client:
            models = (await client.get("/models")).json()
            assert [model["name"] for model in models] == ["flowers", "reviews"]
            assert models[1]["url"].endswith("/models/reviews")
            assert (await client.get("/models/reviews")).json() == models[1]
            assert (await client.get("/health")).json() == {"status": "ok", "models": 2}
            document = (await client.get("/openapi.json")).json()
            assert document["openapi"] == "3.1.0"
            assert set(document["paths"]) == {
                "/health",
                "/models",
                "/openapi.json",
                "/models/reviews",
                "/models/flowers",
            }
            for operations in document["paths"].values():
                for operation in operations.values():
                    assert operation["responses"]["200"]["description"]
            body = document["paths"]["/models/reviews"]["post"]["requestBody"]
            assert body["content"]["application/json"]["schema"]["required"] == ["inputs"]

    asyncio.run(main())


def test_the_gateway_imports_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, serve.gateway.app, serve.run; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
