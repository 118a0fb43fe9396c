"""The way in: routes by model, passes bytes on, turns whatever goes wrong behind it into one kind of JSON.

A Serve deployment for its lifecycle alone: it has an HTTP server of its own, on a unix socket behind the node's HAProxy
(serve.front), and sends requests to replicas itself (serve.gateway.forward). Never imports torch. What it knows of the
models comes by `user_config`, so adding or removing one restarts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ray import serve
from ray.exceptions import ActorDiedError, RayError

from cluster.engine import TASK
from cluster.errors import InputError, NotFound, RunFailed, ShoalError
from cluster.monitoring.record import Requests
from cluster.settings import home
from cluster.settings.access import Access, RequestLog
from serve import places
from serve.asgi import (
    Disconnected,
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
from serve.asking import answered, ask
from serve.front import front
from serve.gateway import openai_routes, visit
from serve.gateway.behind import retried, take_place
from serve.gateway.body import Body
from serve.gateway.directory import Directory
from serve.gateway.errand import Errand, Headers, Refuse
from serve.gateway.forward import Forwarder
from serve.gateway.news import News
from serve.gateway.pace import CUT, CUT_OFF, Paced
from serve.keys.gatekeeper import Gatekeeper
from serve.keys.refusals import Refusal
from serve.openapi import document
from serve.rollout.steer import Steering
from serve.server import listen as listen_on


class Gateway:
    """One replica of the gateway; see `answer` for the routes."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}
        self.requests = Requests()
        self.directory = Directory()
        self.secret = b""
        self.forwarder = Forwarder(self.directory, lambda: self.secret)
        self.steering = Steering(self.forwarder)
        self.id = secrets.token_hex(4)
        self.news = News(self.id, self.directory, self.forwarder)
        self.lock: IO[str] | None = None
        self.tasks: list[asyncio.Task[Any]] = []
        self.gatekeeper: Gatekeeper | None = None
        self.rules: dict[str, Any] = {}

    def learn(self, config: dict[str, Any]) -> None:
        """The models ({name: {task, version, request, response, timeout_s}}, and `application` where a model is served
        by another one's), where clients find this gateway, and the size limit."""
        self.models = config["models"]
        self.requests.serves(self.models)
        self.steering.learn(self.models)
        self.news.learn(self.models)
        self.public_url: str = config["public_url"]
        self.max_bytes = int(config["max_body_mb"] * 2**20)
        self.send_timeout_s: float = config.get("send_timeout_s", 15)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """What to know (see `learn`). At first it begins to listen, at {listen: {host, port}}."""
        self.learn(config)
        await self._guard(config)
        if not self.tasks:
            await self._open({**config["listen"], "send_timeout_s": self.send_timeout_s})
        with contextlib.suppress(RayError):
            await self.front.retry.remote(retried(self.models))
        # So that the next who asks the Keeper hears of it.
        with contextlib.suppress(Exception):
            await self.news.look(-1)

    async def check_health(self) -> None:
        """Raises where this gateway does not listen any more. Called every few seconds. HAProxy is looked after by its
        actor: where that died for good, the next look makes another."""
        if self.tasks[0].done():
            raise RunFailed("the gateway does not listen any more")
        try:
            async with asyncio.timeout(3):
                await asyncio.shield(answered(self.front.ready.remote(2)))
        except ActorDiedError:
            self.front = await asyncio.to_thread(front, self.node, self.listen)
        except (RayError, TimeoutError):
            return  # it is on its way back, or Ray's control service is away; HAProxy itself goes on meanwhile

    async def __del__(self) -> None:
        """Finish what is under way; HAProxy sees by the socket that goes away that nothing more may come."""
        if not self.tasks:
            return
        with contextlib.suppress(OSError):
            os.unlink(self.socket)
        # It looks every half second, and uses the connections that it has until then.
        await asyncio.sleep(1.5)
        self.server.should_exit = True
        longest = max([60, *(model["timeout_s"] for model in self.models.values())])
        with contextlib.suppress(Exception):
            await asyncio.wait_for(asyncio.shield(self.tasks[0]), longest + 5)
        if self.gatekeeper is not None:
            await self.gatekeeper.stop()
        for task in self.tasks[1:]:
            task.cancel()
        with contextlib.suppress(Exception):
            await ask("bye", self.id, within_s=2)

    async def _open(self, listen: dict[str, Any]) -> None:
        """Take a free place behind this node's HAProxy, and see that there is one. Raises RunFailed."""
        import ray

        self.secret = places.secret()
        folder = places.sockets()
        self.socket, self.lock = take_place(folder)
        following = asyncio.create_task(self.news.follow())
        app = application(self.requests.measured(self.answer))
        try:
            self.server, serving = await listen_on(app, path=self.socket)
        except OSError:
            raise RunFailed(f"the gateway cannot listen on {self.socket}") from None
        self.node, self.listen = ray.get_runtime_context().get_node_id(), listen
        self.front = front(self.node, listen)
        if trouble := await self.front.ready.remote():
            raise RunFailed(f"HAProxy on {listen['host']}:{listen['port']}: {trouble}")
        self.tasks = [
            serving,
            following,
            asyncio.create_task(self.news.tell_load()),
            asyncio.create_task(self.steering.follow(self.id)),
        ]

    async def _guard(self, config: dict[str, Any]) -> None:
        """Put {access, request_log} of cluster.yaml in force; `home` is $SHOAL_HOME."""
        rules = {key: config[key] for key in ("access", "request_log", "home") if key in config}
        if not rules or rules == self.rules:
            return
        before = self.gatekeeper
        fresh = Gatekeeper(
            Access.model_validate(rules["access"]),
            RequestLog.model_validate(rules["request_log"]),
            home=Path(rules["home"]) if rules.get("home") else home(),
            gateway=secrets.token_hex(8),
            operator=places.operator(),
        )
        await fresh.start()
        self.gatekeeper, self.rules = fresh, rules
        if before is not None:
            await before.stop()

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, from who asks to what it came to."""
        await visit.around(self.gatekeeper, self._answer, _say, scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /models/NAME; GET /models, /models/NAME, /health, /openapi.json; /v1 is OpenAI's; 404 for all else."""
        method, path = scope["method"], scope["path"]
        receive = Paced(receive, self.send_timeout_s)
        if (found := openai_routes.split(path)) is not None:
            await openai_routes.answer(self, *found, scope, receive, send)
            return
        try:
            if method == "POST" and path.startswith("/models/"):
                name = self.find(path[len("/models/") :], visit.of(scope).visible(self.models))
                await self.forward(name, scope, receive, send)
            elif path == "/-/ping":
                await respond(send, 200, b'"pong"')
            elif path == "/-/ready":
                waiting = self.directory.unmet(model.get("application", name) for name, model in self.models.items())
                await respond(send, 503 if waiting else 200, encode({"waiting": waiting}))
            elif path == "/-/state":
                await self._tell_state(scope, send)
            elif method in ("GET", "HEAD"):
                await respond(send, 200, encode(self.show(path, visit.of(scope).visible(self.models))))
            elif path in ("/models", "/health", "/openapi.json") or path.startswith("/models/"):
                allow = b"GET, POST" if path.startswith("/models/") else b"GET"
                body = encode({"error": f"{method} {path}: send a {allow.decode()}", "error_type": "MethodNotAllowed"})
                await respond(send, 405, body, ((b"allow", allow),))
            else:
                raise NotFound(_NOWHERE.format(path=path[:200]))
        except ShoalError as error:
            await _say(error, scope, send)
        except Disconnected:
            return

    def find(self, name: str, models: dict[str, dict[str, Any]]) -> str:
        """The name, where there is such a model among those that there are for a client. Raises NotFound, naming the
        nearest."""
        if name in models:
            return name
        if not models:
            raise NotFound(f"model {name[:200]!r}: none is served; `shoal serve FILE` serves one")
        near = difflib.get_close_matches(name[:200], models, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"these are served: {', '.join(sorted(models)[:20])}"
        raise NotFound(f"model {name[:200]!r} is not served; {hint}")

    def show(self, path: str, models: dict[str, dict[str, Any]]) -> Any:
        """What a GET answers. Raises NotFound."""
        if path == "/health":
            return {"status": "ok", "models": len(models)}
        if path == "/models":
            return [self.describe(name) for name in sorted(models)]
        if path == "/openapi.json":
            return document(models)
        if path.startswith("/models/"):
            return self.describe(self.find(path[len("/models/") :], models))
        raise NotFound(_NOWHERE.format(path=path[:200]))

    def describe(self, name: str) -> dict[str, Any]:
        model = self.models[name]
        facts = {key: model[key] for key in ("task", "version", "request", "response")}
        return {"name": name, "url": f"{self.public_url}/models/{name}", "state": "ready", **facts}

    async def forward(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the model's application and its answer back. Bytes are looked at by nobody here."""
        await visit.of(scope).admit(name, self.models[name])
        if self.models[name]["task"] == TASK:
            raise InputError(f"{name} is a language model; POST /v1/chat/completions or /v1/completions asks it")
        if declared_length(dict(scope["headers"])) > self.max_bytes:
            raise too_large(self.max_bytes)
        body = await Body.take(receive, self.max_bytes)
        await self.pass_on(name, "", body, scope, send, refuse)

    async def pass_on(self, name: str, route: str, body: Body, scope: Scope, send: Send, refuse: Refuse) -> None:
        """Send a body to a route of the model's application, and the answer back; `refuse` says what went wrong."""
        self.requests.routed(scope, name)
        errand = visit.of(scope).errand = Errand(name, self.models[name], route, body, scope, send, refuse)
        await self.steering.send(errand)

    async def _tell_state(self, scope: Scope, send: Send) -> None:
        """What the Keeper knows: for whoever has the cluster's token."""
        if not places.is_operator(scope["headers"]):
            body = encode({"error": "/-/state: send the cluster's token as a Bearer", "error_type": "Unauthorized"})
            await respond(send, 401, body, ((b"www-authenticate", b"Bearer"),))
            return
        await respond(send, 200, encode(await ask("state")))


async def _say(error: ShoalError, scope: Scope, send: Send) -> None:
    """Answer with an error of ours, in the shape of the route."""
    if openai_routes.split(scope["path"]) is not None:
        return await openai_routes.refuse_error(send, error)
    status, body = error_body(error)
    cut = CUT if status in CUT_OFF else ()
    return await respond(send, status, body, error.headers if isinstance(error, Refusal) else cut)


_NOWHERE = "{path}: nothing here; POST /models/NAME, GET /models, /health and /openapi.json, and OpenAI's /v1 are"


async def refuse(send: Send, status: int, message: str, kind: str, headers: Headers = ()) -> None:
    """Answer with the error shape of the Hugging Face routes."""
    await respond(send, status, encode({"error": message, "error_type": kind}), headers)


def build(args: Mapping[str, Any]) -> serve.Application:
    """The gateway's application. Nothing is in `args` but which attempt it is; see cluster.serving."""
    deployment = serve.deployment(name="Gateway", max_constructor_retry_count=2, max_surge_percent=100)
    return deployment(Gateway).bind()
