"""The way in: routes by model, passes bytes on, turns whatever goes wrong behind it into one kind of JSON.

A Serve deployment for its lifecycle alone: it has an HTTP server of its own, on a unix socket behind the node's HAProxy
(serve.front), and sends requests to replicas itself (serve.gateway.forward). Never imports torch. What it knows of the
models comes by `user_config`, so adding or removing one restarts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
import fcntl
import os
import secrets
from collections.abc import Mapping
from typing import IO, Any

import uvicorn
from ray import serve

from cluster.engine import TASK
from cluster.errors import InputError, NotFound, RunFailed, ShoalError
from cluster.monitoring.record import Requests
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
from serve.front import SLOTS, front
from serve.gateway import openai_routes
from serve.gateway.body import Body
from serve.gateway.directory import Directory
from serve.gateway.forward import Errand, Forwarder, Headers, Refuse
from serve.host import Server
from serve.keeper import PACE_S, keeper
from serve.openapi import document
from serve.rollout.steer import Steering


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
        self.lock: IO[str] | None = None
        self.tasks: list[asyncio.Task[Any]] = []

    def learn(self, config: dict[str, Any]) -> None:
        """The models ({name: {task, version, request, response, timeout_s}}, and `application` where a model is served
        by another one's), where clients find this gateway, and the size limit."""
        self.models = config["models"]
        self.requests.serves(self.models)
        self.steering.learn(self.models)
        self.public_url: str = config["public_url"]
        self.max_bytes = int(config["max_body_mb"] * 2**20)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """What to know (see `learn`). At first it begins to listen, at {listen: {host, port}}."""
        self.learn(config)
        if not self.tasks:
            await self._open(config["listen"])
        # So that the next who asks the Keeper hears of it.
        with contextlib.suppress(Exception):
            await self._look(-1)

    async def check_health(self) -> None:
        """Raises where this gateway or HAProxy before it does not listen. Called every few seconds."""
        if self.tasks[0].done():
            raise RunFailed("the gateway does not listen any more")
        if trouble := await self.front.ready.remote(5):
            raise RunFailed(f"HAProxy: {trouble}")

    async def __del__(self) -> None:
        """Finish what is under way; HAProxy sees by the socket that goes away that nothing more may come."""
        if not self.tasks:
            return
        with contextlib.suppress(OSError):
            os.unlink(self.socket)
        self.server.should_exit = True
        with contextlib.suppress(Exception):
            await asyncio.wait_for(asyncio.shield(self.tasks[0]), 60)
        for task in self.tasks[1:]:
            task.cancel()
        with contextlib.suppress(Exception):
            await keeper().bye.remote(self.id)

    async def _open(self, listen: dict[str, Any]) -> None:
        """Take a free place behind this node's HAProxy, and see that there is one. Raises RunFailed."""
        import ray

        self.secret = places.secret()
        folder = places.sockets()
        self.socket, self.lock = _take_place(folder)
        self.server = Server(
            uvicorn.Config(
                application(self.requests.measured(self.answer)),
                uds=self.socket,
                interface="asgi3",
                proxy_headers=False,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=86_400,
                backlog=4096,
            )
        )
        following = asyncio.create_task(self._follow())
        serving = asyncio.create_task(self.server.serve())
        while not self.server.started:
            if serving.done():
                raise RunFailed(f"the gateway cannot listen on {self.socket}")
            await asyncio.sleep(0.01)
        self.front = front(ray.get_runtime_context().get_node_id(), listen)
        if trouble := await self.front.ready.remote():
            raise RunFailed(f"HAProxy on {listen['host']}:{listen['port']}: {trouble}")
        self.tasks = [serving, following, asyncio.create_task(self.steering.follow(self.id))]

    async def _follow(self) -> None:
        """Ask the Keeper what is new and tell it the load, as long as this lives."""
        seen = 0
        while True:
            try:
                seen = await self._look(seen)
            except Exception:
                seen = 0  # it is another one now, or will be; until then what was known last is good
                await asyncio.sleep(1)
            await asyncio.sleep(PACE_S)

    async def _look(self, seen: int) -> int:
        loads = {name: dataclasses.asdict(load) for name, load in self.forwarder.loads.items()}
        versions = {name: model["version"] for name, model in self.models.items()}
        told = await keeper().look.remote(self.id, seen, loads, versions)
        self.directory.update(told["replicas"])
        return told["version"]

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /models/NAME; GET /models, /models/NAME, /health, /openapi.json; /v1 is OpenAI's; 404 for all else."""
        method, path = scope["method"], scope["path"]
        if (found := openai_routes.split(path)) is not None:
            await openai_routes.answer(self, *found, scope, receive, send)
            return
        try:
            if method == "POST" and path.startswith("/models/"):
                await self.forward(self.find(path[len("/models/") :]), scope, receive, send)
            elif path == "/-/ping":
                await respond(send, 200, b'"pong"')
            elif path == "/-/state":
                await self._tell_state(scope, send)
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
        await self.pass_on(name, "", body, scope, send, refuse)

    async def pass_on(self, name: str, route: str, body: Body, scope: Scope, send: Send, refuse: Refuse) -> None:
        """Send a body to a route of the model's application, and the answer back; `refuse` says what went wrong."""
        self.requests.routed(scope, name)
        await self.steering.send(Errand(name, self.models[name], route, body, scope, send, refuse))

    async def _tell_state(self, scope: Scope, send: Send) -> None:
        """What the Keeper knows: for whoever has the cluster's token."""
        if not places.is_operator(scope["headers"]):
            body = encode({"error": "/-/state: send the cluster's token as a Bearer", "error_type": "Unauthorized"})
            await respond(send, 401, body, ((b"www-authenticate", b"Bearer"),))
            return
        await respond(send, 200, encode(await keeper().state.remote()))


_NOWHERE = "{path}: nothing here; POST /models/NAME, GET /models, /health and /openapi.json, and OpenAI's /v1 are"


async def refuse(send: Send, status: int, message: str, kind: str, headers: Headers = ()) -> None:
    """Answer with the error shape of the Hugging Face routes."""
    await respond(send, status, encode({"error": message, "error_type": kind}), headers)


def _take_place(folder: Any) -> tuple[str, IO[str]]:
    """A socket's path that no other gateway of this node has, and the lock that keeps it. Raises RunFailed."""
    for slot in range(SLOTS):
        lock = open(folder / f"g{slot}.lock", "w")  # noqa: SIM115 - open as long as the place is taken
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        path = folder / f"g{slot}"
        path.unlink(missing_ok=True)  # of one that was killed
        return str(path), lock
    raise RunFailed(f"{SLOTS} gateways run on this node, which is the most; lower http.gateways in cluster.yaml")


def build(args: Mapping[str, Any]) -> serve.Application:
    """The gateway's application. Nothing is in `args` but which attempt it is; see cluster.serving."""
    deployment = serve.deployment(name="Gateway", max_constructor_retry_count=2, max_surge_percent=100)
    return deployment(Gateway).bind()
