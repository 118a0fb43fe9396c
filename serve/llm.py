"""The Serve application of a language model, by import path ("serve.llm:build"): a replica is a vLLM engine, and vLLM's
own OpenAI application answers with nothing between it and the gateway but a list of what may be asked.

This module imports no vLLM: Serve builds applications in a process of its own, and only replicas need the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve

from cluster.errors import RunFailed, ShoalError
from serve import adapters
from serve.asgi import Message, Receive, Scope, Send, declared_length, too_large
from serve.gateway.openai_routes import refuse, refuse_error
from serve.host import Host
from serve.located import located
from serve.scaling import parts
from serve.vllm_engine import FORMED, Engine, EngineKeys

log = logging.getLogger("ray.serve")
# Of what vLLM serves: what generates, and what tells of it. The rest scales, aborts and renders for its operators.
ASKED = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/models": "GET",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/health": "GET",
}


class LlmArgs(BaseModel):
    """What a change of starts new replicas: which model, and what its engine is started with."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: str
    task: str
    version: str
    folder: str
    device: str
    attempt: int
    engine: EngineKeys


class Llm:
    """One replica: an engine, and the adapters that `reconfigure` names."""

    def __init__(self, args: dict[str, Any]) -> None:
        parts.begin()
        self.args = LlmArgs.model_validate(args)
        self.engine: Engine | None = None
        self.changing = asyncio.Lock()
        self.host = Host(self._application, version=self.args.version, facts=self.facts)
        self.faults: dict[str, str] = {}

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Limits, and adapters ({name: {version, folder, tag}}): new and changed ones are loaded, others unloaded. The
        first time the engine starts, and the replica begins to listen.

        An adapter that cannot be loaded is told of under GET /state and answers 404. It is not raised: Serve would
        replace the replica, which answers for all the others.
        """
        self.timeout_s: float = config["request_timeout_s"]
        self.max_bytes = int(config["max_body_mb"] * 2**20)
        wanted: dict[str, dict[str, str]] = config["adapters"]
        async with self.changing:
            if self.engine is None:
                self.folder = located(self.args.folder)
                self.engine = await Engine.start(self.args.name, self.folder, self.args.engine, device=self.args.device)
            engine = self.engine
            loaded = engine.loaded()
            self.faults = {}
            for name in loaded:
                if name not in wanted:
                    await engine.unload(name)
            for name, adapter in wanted.items():
                if loaded.get(name) == adapter["tag"]:
                    continue
                try:
                    await self._load(engine, name, adapter)
                except ShoalError as error:
                    log.exception("%s: adapter %s", self.args.name, name)
                    self.faults[name] = error.message
        self.max_memory_gb: float | None = config.get("max_memory_gb")
        self.host.takes = config["max_ongoing_requests"]
        self.host.limit = config["max_ongoing_requests"] + config["max_queued_requests"]
        if not self.host.tasks:
            await self.host.open()
        self.host.tell()

    async def check_health(self) -> None:
        """Raises where the engine died, so that Serve starts another replica. Called every few seconds."""
        engine = self._running()
        await self.host.check(self.max_memory_gb)
        await engine.check()
        engine.tell_idle()

    async def __del__(self) -> None:
        await self.host.close(self.timeout_s)
        if self.engine is not None:
            self.engine.stop()
            self.engine = None

    async def _load(self, engine: Engine, name: str, adapter: Mapping[str, str]) -> None:
        folder = located(adapter["folder"])
        checked = adapters.inspect(folder, max_rank=self.args.engine.max_lora_rank)
        adapters.check_fit(checked, self.folder)
        await engine.load(name, folder, adapter["tag"])

    def _running(self) -> Engine:
        if self.engine is None:
            raise RunFailed(f"{self.args.name}: the engine is not up")
        return self.engine

    def facts(self) -> dict[str, Any]:
        """What the Keeper is told: the adapters by tag, those that cannot be loaded and why, tokens and requests."""
        engine = self._running()
        return {
            "adapters": engine.loaded(),
            "faults": self.faults,
            "max_model_len": engine.max_model_len,
            "unfinished": engine.unfinished,
        }

    async def _application(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(self._running(), scope, receive, send)

    async def _answer(self, engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if ASKED.get(path) != scope["method"] and not (path.startswith("/v1/models/") and scope["method"] == "GET"):
            await refuse(send, 404, f"{scope['method']} {path[:200]}: nothing here; {_HERE}", "NotFoundError")
            return
        way = Way(receive, send, self.max_bytes)
        try:
            if declared_length(dict(scope["headers"])) > self.max_bytes:
                raise too_large(self.max_bytes)
            async with asyncio.timeout(self.timeout_s):
                await engine.app({**scope, FORMED: lambda: way.formed}, way.receive, way.send)
        except TimeoutError:
            if way.begun:
                raise  # the connection is cut: a stream that ends well would look whole
            message = f"no answer within {self.timeout_s:g} s; raise serve.request_timeout_s, or ask for fewer tokens"
            await refuse(send, 504, message, "Timeout")
        except ShoalError as error:
            if way.begun:
                raise
            await refuse_error(send, error)


_HERE = f"this model has {', '.join(f'{method} {path}' for path, method in ASKED.items())}"


_FORMS = (b'"response_format"', b'"structured_outputs"', b'"tools"')


class Way:
    """A request's two ends: counts the bytes that come in, and notes whether they ask for a form of the answer and
    whether that has begun."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int) -> None:
        self._receive, self._send = receive, send
        self.left = max_bytes
        self.max_bytes = max_bytes
        self.fault: ShoalError | None = None
        self.begun = False
        self.formed = False
        self.tail = b""

    async def receive(self) -> Message:
        message = await self._receive()
        chunk = message.get("body", b"")
        self.left -= len(chunk)
        # A key may lie across two pieces.
        self.formed = self.formed or any(key in self.tail + chunk for key in _FORMS)
        self.tail = chunk[-20:]
        if self.left < 0:
            self.fault = too_large(self.max_bytes)
            raise self.fault
        return message

    async def send(self, message: Message) -> None:
        if self.fault is not None:
            raise self.fault  # instead of FastAPI's words for a body that cannot be read
        self.begun = True
        await self._send(message)


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application of one language model; `args` are LlmArgs."""
    deployment = serve.deployment(
        name="Llm",
        # A model that cannot be loaded fails the same way the second time.
        max_constructor_retry_count=1,
        # The new version answers before the old one is taken away, so a bad one takes nothing away.
        max_surge_percent=100,
    )
    return deployment(Llm).bind(dict(args))
