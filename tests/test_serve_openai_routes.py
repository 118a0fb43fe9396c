"""OpenAI's routes of the gateway, in front of an engine that is not there: which model, which bytes, which errors."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
import serve_tiny as tiny
from aiohttp import web

from cluster.errors import InputError, NotFound
from serve.asgi import application
from serve.gateway.app import Gateway
from serve.gateway.openai_routes import split, understood

MODELS = {
    "chat": {"task": "text-generation", "version": "models:/chat/2", "parent": "chat:base", "created": 7},
    "chat:base": {"task": "text-generation", "version": "org/base", "application": "chat"},
    "chat:verse": {"task": "text-generation", "version": "models:/verse/1", "application": "chat"},
    "reviews": {"task": "text-classification", "version": "models:/reviews/1"},
}
for entry in MODELS.values():
    entry |= {"request": "", "response": "", "timeout_s": 5, "max_model_len": 2048}


@asynccontextmanager
async def gateway(handler, *, timeout_s=5.0):
    """A client of a gateway that knows MODELS, in front of `handler`."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    way = Gateway()
    models = {name: {**entry, "timeout_s": timeout_s} for name, entry in MODELS.items()}
    way.learn({"models": models, "public_url": url, "max_body_mb": 1})
    tiny.replicas(way, url, "chat", "reviews")
    transport = httpx.ASGITransport(application(way.answer))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
    await runner.cleanup()


async def echo(request):
    return web.json_response({"path": request.path_qs, "body": (await request.read()).decode()})


def test_the_body_says_which_engine_and_goes_on_byte_by_byte():
    async def main():
        async with gateway(echo) as client:
            for model in ("chat", "chat:base", "chat:verse"):
                body = f'{{ "model" :"{model}",  "prompt": "\\u00e9", "odd": 1.0}}'
                for route in ("/v1/completions", "/v1/chat/completions"):
                    answer = (await client.post(route, content=body)).json()
                    assert answer == {"path": route, "body": body}

    asyncio.run(main())


def test_the_path_says_which_model_whatever_the_body_says():
    async def main():
        async with gateway(echo) as client:
            for said in ({"model": "dummy"}, {"model": "http://host/models/chat"}, {}):
                answer = await client.post("/models/chat:verse/v1/chat/completions", json={**said, "messages": ["é"]})
                assert answer.json()["path"] == "/v1/chat/completions"
                assert json.loads(answer.json()["body"]) == {"model": "chat:verse", "messages": ["é"]}

    asyncio.run(main())


def test_huggingfaces_schema_becomes_openais():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    body = json.dumps({"model": "chat", "response_format": {"type": "json_object", "value": schema}}).encode()
    model, sent = understood(body, "", MODELS)
    assert model == "chat"
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert json.loads(sent) == {"model": "chat", "response_format": form}
    for plain in ({"type": "json_object"}, form, "text", None):
        body = json.dumps({"model": "chat", "response_format": plain}).encode()
        assert understood(body, "", MODELS) == ("chat", body)


def test_a_character_in_two_halves_goes_through():
    body = b'{"model": "dummy", "prompt": "\\ud83d\\uDE00"}'
    _, sent = understood(body, "chat", MODELS)
    assert json.loads(sent)["prompt"] == "\U0001f600"


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", InputError, "no JSON object"),
        (b"[]", InputError, "no JSON object"),
        (b"[" * 100_000, InputError, "no JSON object"),
        (b"{}", InputError, "GET /v1/models lists them"),
        (b'{"model": 3}', InputError, "model: 3 names no model"),
        (b'{"model": "chad"}', NotFound, "did you mean chat?"),
        (b'{"model": "chat:vers"}', NotFound, "did you mean chat:verse?"),
        (b'{"model": "x"}', NotFound, "these are: chat, chat:base, chat:verse"),
        (b'{"model": "reviews"}', InputError, "is for text-classification"),
        # No tokenizer takes it, and in places it was a 500.
        (b'{"model": "chat", "prompt": "\\ud83d"}', InputError, "half of a character"),
        (b'{"model": "chat", "stop": {"\\uDE00": 1}}', InputError, "half of a character"),
        (b'{"model": "chat", "prompt": "\xed\xa0\xbd"}', InputError, "half of a character"),
    ],
)
def test_what_cannot_be_understood(body, kind, words):
    with pytest.raises(kind) as caught:
        understood(body, "", MODELS)
    assert words in str(caught.value)


def test_which_paths_are_openais():
    assert split("/v1/models") == ("", "/v1/models")
    assert split("/models/chat:verse/v1/chat/completions") == ("chat:verse", "/v1/chat/completions")
    for path in ("/models/chat", "/models", "/health", "/v1", "/models/chat/v2/x"):
        assert split(path) is None


def test_errors_have_openais_shape_and_a_status():
    async def main():
        async with gateway(echo) as client:
            for answer, status, kind in (
                (await client.post("/v1/completions", json={"model": "nope"}), 404, "NotFoundError"),
                (await client.post("/v1/completions", content=b"x"), 400, "BadRequestError"),
                (await client.post("/v1/completions", content=b"x" * (2**20 + 1)), 413, "TooLarge"),
                (await client.post("/v1/embeddings", json={}), 404, "NotFoundError"),
                (await client.get("/v1/models/nope"), 404, "NotFoundError"),
                (await client.get("/v1/completions"), 405, "MethodNotAllowed"),
                (await client.post("/v1/models"), 405, "MethodNotAllowed"),
            ):
                assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            headers = {"content-encoding": "gzip"}
            answer = await client.post("/v1/completions", content=b"x", headers=headers)
            assert (answer.status_code, "compressed" in answer.json()["error"]["message"]) == (400, True)

    asyncio.run(main())


def test_a_busy_engine_is_429_and_its_own_errors_come_through():
    answers = iter(
        [(503, "text/plain"), (503, "application/json"), (400, "application/json"), (404, "application/json")]
    )

    async def busy(request):
        status, media = next(answers)
        return web.Response(status=status, body=b'{"error": {"message": "no"}}', content_type=media)

    async def main():
        async with gateway(busy) as client:
            for _ in range(2):
                answer = await client.post("/v1/completions", json={"model": "chat"})
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
                assert answer.json()["error"]["code"] == 429
            for status in (400, 404):
                answer = await client.post("/v1/completions", json={"model": "chat"})
                assert (answer.status_code, answer.json()) == (status, {"error": {"message": "no"}})

    asyncio.run(main())


def test_models_are_listed_with_what_they_are():
    async def main():
        async with gateway(echo) as client:
            listed = (await client.get("/v1/models")).json()
            assert [model["id"] for model in listed["data"]] == ["chat", "chat:base", "chat:verse"]
            assert (await client.get("/v1/models/chat")).json() == {
                "id": "chat",
                "object": "model",
                "created": 7,
                "owned_by": "shoal",
                "root": "models:/chat/2",
                "max_model_len": 2048,
                "parent": "chat:base",
            }
            assert (await client.get("/models/chat:base/v1/models")).json()["data"][0]["root"] == "org/base"
            document = (await client.get("/openapi.json")).json()
            schema = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
            assert schema["schema"]["properties"]["model"]["enum"] == ["chat", "chat:base", "chat:verse"]
            answer = await client.post("/models/chat", json={"inputs": "a"})
            assert (answer.status_code, "/v1/chat/completions" in answer.json()["error"]) == (400, True)

    asyncio.run(main())


def test_an_answer_that_breaks_off_does_not_look_whole():
    """Whatever happens after the first byte cuts the connection: nothing is added that would end it well."""

    async def dribble(request):
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b"data: 1\n\n")
        if b"slow" in await request.read():
            await asyncio.sleep(3)
        request.transport.abort()
        return answer

    async def run(prompt):
        sent = []

        async def send(message):
            sent.append(message)

        body = json.dumps({"model": "chat", "prompt": prompt}).encode()
        messages = [{"type": "http.request", "body": body}]

        async def receive():
            while not messages:
                await asyncio.sleep(60)  # a client that stays
            return messages.pop()

        async with gateway(dribble, timeout_s=-0.5) as client:
            answer = client._transport.app  # pyright: ignore[reportAttributeAccessIssue] - an ASGITransport
            scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
            with pytest.raises(Exception):  # noqa: B017, PT011 - whichever it is, the server cuts the connection
                await answer(scope, receive, send)
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]

    asyncio.run(run("slow"))
    asyncio.run(run("dead"))


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data/"}}, "image_url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "image_url"),
        ({"image_url": "http://127.0.0.1:8265/"}, "image_url"),  # vLLM guesses the type
        ({"type": "text", "text": "a", "video_url": "file:///etc/passwd"}, "video_url"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "input_audio"),
        ({"type": "audio_url", "audio_url": {"url": "http://a/"}}, "audio_url"),
        ({"type": "file", "file": {"file_id": "a"}}, "file"),
        ({"type": ["text"]}, "['text']"),
    ],
)
def test_a_chat_with_pictures_or_addresses_never_reaches_a_model_of_texts(part, kind):
    body = {"model": "chat", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}
    with pytest.raises(InputError) as error:
        understood(json.dumps(body).encode(), "", MODELS)
    assert error.value.message.startswith(f"messages[0].content[1]: {kind}: chat reads text only")
    body["messages"][0]["content"] = [{"type": "text", "text": "what is at http://example.com?"}, "and more"]
    assert understood(json.dumps(body).encode(), "", MODELS)[0] == "chat"


def test_a_body_that_is_parsed_at_the_gateway_is_smaller_than_one_that_is_passed_on(monkeypatch):
    from serve.gateway import openai_routes

    monkeypatch.setattr(openai_routes, "PARSED_BYTES", 1 << 19)  # of the tests' megabyte

    async def main():
        async with gateway(echo) as client:
            body = {"model": "chat", "prompt": "a" * (1 << 19)}
            answer = await client.post("/v1/completions", json=body)
            assert (answer.status_code, answer.headers["connection"]) == (413, "close")
            assert "a request to a language model has" in answer.json()["error"]["message"]

    asyncio.run(main())
