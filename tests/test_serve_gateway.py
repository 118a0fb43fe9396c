"""The gateway and a model's replica in this process, as the ASGI applications they are: no Ray, but real sockets."""

import asyncio
import json
import threading
import time
from contextlib import asynccontextmanager

import httpx
import pytest
import serve_tiny as tiny
import uvicorn
from aiohttp import web

from serve.app import Model
from serve.asgi import application
from serve.gateway.app import Gateway

SECTION = {
    "max_batch_size": 8,
    "max_batch_tokens": 4096,
    "batch_wait_ms": 2,
    "max_ongoing_requests": 64,
    "max_queued_requests": 256,
    "request_timeout_s": 20,
    "max_body_mb": 1,
    "max_pixels": 10**7,
}


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


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("replica") / "bert")


def replica(folder, **changed) -> Model:
    args = {
        "name": "a",
        "task": "text-classification",
        "version": "1",
        "folder": str(folder),
        "device": "cpu",
        "attempt": 0,
    }
    model = Model(args)
    model.configure({**SECTION, **changed})
    return model


def client_of(model: Model) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(application(model.answer)), base_url="http://replica")


def test_requests_share_a_forward_pass_and_get_their_own_answers(model_folder):
    async def main():
        model = replica(model_folder, batch_wait_ms=50)
        sizes = []
        predict = model.handler.predict
        model.handler.predict = lambda batch: sizes.append(len(batch)) or predict(batch)
        async with client_of(model) as client:
            texts = [f"text number {index}" for index in range(8)]
            answers = await asyncio.gather(*(client.post("/", json={"inputs": text}) for text in texts))
        assert sizes == [8]
        for text, answer in zip(texts, answers, strict=True):
            scores = {one["label"]: one["score"] for one in answer.json()[0]}
            assert scores == pytest.approx(tiny.bert_scores(model_folder, text), abs=1e-4)

    asyncio.run(main())


def test_a_bad_input_fails_alone_and_not_its_batch(model_folder):
    async def main():
        model = replica(model_folder, batch_wait_ms=50)
        predict = model.handler.predict
        (poison,), _ = model.handler.decode_request(b'{"inputs": "poison"}', "", {})

        def picky(batch):
            if any(one.ids.tolist() == poison.ids.tolist() for one in batch):
                raise RuntimeError("cuda says no")
            return predict(batch)

        model.handler.predict = picky
        async with client_of(model) as client:
            texts = ["fine", "poison", "fine too"]
            good, bad, other = await asyncio.gather(*(client.post("/", json={"inputs": text}) for text in texts))
        assert (good.status_code, bad.status_code, other.status_code) == (200, 500, 200)
        assert bad.json()["error_type"] == "RunFailed"
        assert "cuda says no" not in bad.text

    asyncio.run(main())


def test_a_replica_refuses_with_json_and_a_status(model_folder):
    async def main():
        model = replica(model_folder)
        async with client_of(model) as client:
            cases = [
                (await client.post("/", content=b"nope"), 400, "InputError"),
                (await client.post("/", content=b""), 400, "InputError"),
                (await client.post("/", content=b"\x89PNG\r\n\x1a\n"), 400, "InputError"),
                (await client.post("/", content=b"a" * (2**20 + 1)), 413, "TooLarge"),
                (await client.post("/", content=b"x", headers={"content-encoding": "gzip"}), 400, "InputError"),
                (await client.get("/"), 405, "MethodNotAllowed"),
            ]
            for answer, status, kind in cases:
                assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
                assert set(answer.json()) == {"error", "error_type"}
            answer = await client.post("/", content=json.dumps({"inputs": "still here"}))
            assert answer.status_code == 200

    asyncio.run(main())


def test_a_full_replica_says_when_to_come_again(model_folder):
    async def main():
        model = replica(model_folder, max_ongoing_requests=1, max_queued_requests=1, max_batch_size=1)
        predict = model.handler.predict
        model.handler.predict = lambda batch: time.sleep(0.1) or predict(batch)
        async with client_of(model) as client:
            answers = await asyncio.gather(*(client.post("/", json={"inputs": f"{index}"}) for index in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
        full = next(answer for answer in answers if answer.status_code == 429)
        assert full.json()["error_type"] == "Overloaded"
        assert int(full.headers["retry-after"]) >= 1

    asyncio.run(main())


def test_a_client_that_left_costs_no_pass(model_folder):
    """Over real connections: one that closes while its request waits is found out before its turn."""

    async def main():
        model = replica(model_folder, max_batch_size=1)
        predict, passes, go = model.handler.predict, [], threading.Event()
        model.handler.predict = lambda batch: passes.append(len(batch[0].ids)) or (go.wait(10) and predict(batch))

        async def in_hand(count):
            async with asyncio.timeout(10):
                while model.facts()["ongoing"] != count:
                    await asyncio.sleep(0.01)

        config = uvicorn.Config(application(model.answer), port=0, lifespan="off", log_level="error", http="httptools")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]

        async def post(text):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps({"inputs": text}).encode()
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
            return reader, writer

        first, kept = await post("a")
        await in_hand(1)
        left, gone = await post("abcdefgh")
        await in_hand(2)
        last, also = await post("abc")
        await in_hand(3)
        gone.close()
        await in_hand(2)
        go.set()
        for reader in (first, last):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert model.facts()["ongoing"] == model.facts()["queued"] == 0
        for writer in (kept, also):
            writer.close()
        assert await left.read() == b""
        server.should_exit = True
        await serving
        assert passes == [3, 5]

    asyncio.run(main())


def test_a_replica_that_is_too_slow_says_so(model_folder):
    async def main():
        model = replica(model_folder, request_timeout_s=0.2)
        predict = model.handler.predict
        model.handler.predict = lambda batch: time.sleep(0.5) or predict(batch)
        async with client_of(model) as client:
            answer = await client.post("/", json={"inputs": "slow"})
            assert (answer.status_code, answer.json()["error_type"]) == (504, "Timeout")
            assert "serve.request_timeout_s" in answer.json()["error"]
            model.handler.predict = predict
            await asyncio.sleep(0.5)
            assert (await client.post("/", json={"inputs": "fast"})).status_code == 200

    asyncio.run(main())


def test_nan_is_no_answer(model_folder):
    async def main():
        import numpy as np

        model = replica(model_folder)
        model.handler.predict = lambda batch: [np.array([np.nan, 0.0]) for _ in batch]
        async with client_of(model) as client:
            answer = await client.post("/", json={"inputs": "x"})
            assert (answer.status_code, answer.json()["error_type"]) == (500, "RunFailed")

    asyncio.run(main())
