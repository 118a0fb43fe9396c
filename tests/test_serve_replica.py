"""A model's replica in this process, as the ASGI application that it is: no Ray."""

import asyncio
import json
import threading
import time

import httpx
import pytest
import serve_tiny as tiny
import uvicorn

from serve.app import Model
from serve.asgi import application

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
