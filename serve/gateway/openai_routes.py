"""OpenAI's routes at the gateway: finds the model that a request names, and passes the bytes on to its engine.

A body is read once and parsed once, to find `model`; it goes on as it came, but where a client cannot say what it means
(see `understood`). Answers are looked at by nobody.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.engine import TASK
from cluster.errors import InputError, NotFound, ShoalError, TooLarge
from serve import chat_parts
from serve.asgi import Disconnected, Receive, Scope, Send, encode, read_body, respond
from serve.gateway import visit
from serve.gateway.body import Body
from serve.gateway.pace import CUT, CUT_OFF
from serve.keys.refusals import Refusal
from serve.keys.tokens import with_usage

if TYPE_CHECKING:
    from serve.gateway.app import Gateway

PARSED_BYTES = 8 << 20  # two million tokens of text, and more
_HALVES = (b"\\ud", b"\\uD", b"\xed")  # with which half of a surrogate pair begins, written out or as it is
GENERATE = ("/v1/chat/completions", "/v1/completions")
_HERE = "POST /v1/chat/completions and /v1/completions, GET /v1/models and /v1/models/ID are"
Headers = tuple[tuple[bytes, bytes], ...]


def split(path: str) -> tuple[str, str] | None:
    """A path of this module's as (model or nothing, "/v1/..."); None where it is none.

    /models/NAME/v1/... is what huggingface_hub's clients make of the address of a model.
    """
    if path.startswith("/v1/"):
        return "", path
    if path.startswith("/models/"):
        name, mark, rest = path.removeprefix("/models/").partition("/v1/")
        if mark:
            return name, f"/v1/{rest}"
    return None


async def answer(gateway: Gateway, name: str, route: str, scope: Scope, receive: Receive, send: Send) -> None:
    """One request. `name` is the model of the path, which wins over the body's. Every fault has OpenAI's shape."""
    try:
        if route in GENERATE and scope["method"] == "POST":
            headers = dict(scope["headers"])
            if headers.get(b"content-encoding", b"identity") != b"identity":
                raise InputError("Content-Encoding: compressed requests are not taken; send the bytes as they are")
            body = await _read(headers, receive, gateway.max_bytes)
            came = visit.of(scope)
            model, body = understood(body, name, came.visible(gateway.models))
            await came.admit(model, gateway.models[model])
            if came.ticket is not None:
                body, came.usage_hidden = with_usage(body)
            await gateway.pass_on(model, route, Body.of(body, receive), scope, send, refuse)
        elif route.startswith("/v1/models") and scope["method"] in ("GET", "HEAD"):
            models = visit.of(scope).visible(gateway.models)
            await respond(send, 200, encode(_shown(route, name, models)))
        elif route in GENERATE or route == "/v1/models":
            allow = "POST" if route in GENERATE else "GET"
            message = f"{scope['method']} {route}: send a {allow}"
            await refuse(send, 405, message, "MethodNotAllowed", ((b"allow", allow.encode()),))
        else:
            raise NotFound(f"{scope['method']} {scope['path'][:200]}: nothing here; {_HERE}")
    except ShoalError as error:
        await refuse_error(send, error)
    except Disconnected:
        return


async def _read(headers: dict[bytes, bytes], receive: Receive, max_bytes: int) -> bytes:
    """A body that will be parsed here, which takes twenty times its size while it lasts. Raises TooLarge."""
    try:
        return await read_body(headers, receive, max_bytes=min(max_bytes, PARSED_BYTES))
    except TooLarge:
        if max_bytes <= PARSED_BYTES:
            raise
        raise TooLarge(f"a request to a language model has {PARSED_BYTES >> 20} MiB at most; send less") from None


def understood(body: bytes, name: str, models: Mapping[str, Mapping[str, Any]]) -> tuple[str, bytes]:
    """The model that a request is for, and the body to pass on. Raises InputError, NotFound.

    The body is changed where its `model` is none of ours, because the path said which, and where `response_format` is
    huggingface_hub's {"type": "json_object", "value": SCHEMA}, which OpenAI calls a json_schema.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise InputError("the request is no JSON object; send {model, messages} or {model, prompt}")
    wanted = name or request.get("model")
    if not isinstance(wanted, str) or not wanted:
        raise InputError(f"model: {wanted!r:.80} names no model; GET /v1/models lists them")
    model = find(wanted, models)
    chat_parts.check(request, model)
    if any(mark in body for mark in _HALVES):
        _whole_characters(request)
    changed = request.get("model") != model
    request["model"] = model
    form = request.get("response_format")
    if isinstance(form, dict) and form.get("type") == "json_object" and isinstance(form.get("value"), dict):
        schema = {"name": "answer", "schema": form["value"]}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
        changed = True
    return model, json.dumps(request, ensure_ascii=False).encode() if changed else body


def _whole_characters(request: dict[str, Any]) -> None:
    """Raises InputError for half of a surrogate pair, which JSON can write and no text can hold."""
    try:
        json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise InputError(f"{half!r} is half of a character; send both halves, or none") from None


def find(name: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    """The name, where it is a language model's. Raises NotFound, naming the nearest; InputError for one of another
    task."""
    if name in models:
        if models[name]["task"] == TASK:
            return name
        raise InputError(f"model {name!r} is for {models[name]['task']}, not for text; POST /models/{name} asks it")
    known = sorted(key for key, model in models.items() if model["task"] == TASK)
    if not known:
        raise NotFound(f"model {name[:200]!r}: no language model is served; `shoal serve FILE` serves one")
    near = difflib.get_close_matches(name[:200], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"these are: {', '.join(known[:20])}"
    raise NotFound(f"model {name[:200]!r} is not served; {hint}")


def _shown(route: str, name: str, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if route == "/v1/models":
        listed = [name] if name else sorted(key for key, model in models.items() if model["task"] == TASK)
        return {"object": "list", "data": [_card(find(one, models), models) for one in listed]}
    return _card(find(route.removeprefix("/v1/models/"), models), models)


def _card(name: str, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A model as OpenAI lists it, and beside it the version that answers and what it is made of."""
    model = models[name]
    facts = {"id": name, "object": "model", "created": model.get("created", 0), "owned_by": "shoal"}
    parent = {"parent": model["parent"]} if "parent" in model else {}
    return {**facts, "root": model["version"], "max_model_len": model.get("max_model_len"), **parent}


async def refuse(send: Send, status: int, message: str, kind: str, headers: Headers = ()) -> None:
    """Answer with OpenAI's {"error": {message, type, param, code}}."""
    error = {"message": message, "type": kind, "param": "model" if status == 404 else None, "code": status}
    await respond(send, status, encode({"error": error}), headers)


async def refuse_error(send: Send, error: ShoalError) -> None:
    """The same, of an error of ours."""
    if isinstance(error, Refusal):
        return await refuse(send, error.status, error.message, error.kind, error.headers)
    kind = _KINDS.get(error.status, "InternalServerError")
    return await refuse(send, error.status, error.message, kind, CUT if error.status in CUT_OFF else ())


# vLLM's own words for them, so that both say the same.
_KINDS = {
    400: "BadRequestError",
    404: "NotFoundError",
    408: "RequestTimeout",
    413: "TooLarge",
    503: "ServiceUnavailableError",
}
