"""A Serve application from arguments, by import path ("serve.app:build"): one model behind batching, as raw ASGI.

This module imports no torch: Serve builds applications in a process of its own, and only replicas need the model.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve

from cluster import tasks
from cluster.errors import InputError, Overloaded, ShoalError
from cluster.monitoring.record import Passes
from serve.asgi import (
    Disconnected,
    Receive,
    Scope,
    Send,
    application,
    encode,
    error_body,
    read_body,
    respond,
    unless_gone,
)
from serve.batch import Batcher
from serve.host import Host
from serve.located import located
from serve.passes import isolated
from serve.scaling import parts
from serve.tasks.content import read_query

log = logging.getLogger("ray.serve")
# Decoding more than this takes longer than handing it to a thread.
INLINE_BYTES = 16_384


class ModelArgs(BaseModel):
    """What a change of starts new replicas: which model."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: str
    task: str
    version: str
    folder: str
    device: str
    attempt: int
    dtype: str = "auto"


class Model:
    """One model: decode, batch across requests, answer."""

    def __init__(
        self,
        args: dict[str, Any],
        *,
        predicting: ThreadPoolExecutor | None = None,
        decoding: ThreadPoolExecutor | None = None,
    ) -> None:
        """Load it. The threads are given where several models share a process."""
        self.args = ModelArgs.model_validate(args)
        module, _, name = tasks.get(self.args.task).server.partition(":")
        self.handler = getattr(importlib.import_module(module), name)()
        self.handler.setup(located(self.args.folder), self.args.device, self.args.dtype)
        self.batcher = Batcher(
            self.predict, Passes(self.args.name).note, self.handler.length, self.handler.pads, predicting
        )
        self.decoder = decoding or ThreadPoolExecutor(1, thread_name_prefix="decode")

    def configure(self, config: dict[str, Any]) -> None:
        """Settings that change without a restart: batching, time and size limits."""
        self.timeout_s: float = config["request_timeout_s"]
        self.max_bytes = int(config["max_body_mb"] * 2**20)
        if "max_pixels" in config:
            self.handler.max_pixels = config["max_pixels"]
        self.batcher.configure(
            max_batch_size=config["max_batch_size"],
            max_batch_tokens=config["max_batch_tokens"],
            wait_s=config["batch_wait_ms"] / 1000,
            max_held=config["max_ongoing_requests"] + config["max_queued_requests"],
        )

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Every fault is JSON with a status; none reaches Serve, which would tell of our insides."""
        if scope["method"] != "POST":
            body = encode({"error": f"{scope['method']}: send a POST", "error_type": "MethodNotAllowed"})
            await respond(send, 405, body, ((b"allow", b"POST"),))
            return
        more: tuple[tuple[bytes, bytes], ...] = ()
        try:
            status, body = 200, await self.run(dict(scope["headers"]), scope["query_string"], receive)
        except Disconnected:
            return
        except TimeoutError:
            message = f"no answer within {self.timeout_s:g} s; raise serve.request_timeout_s, or send less"
            status, body = 504, encode({"error": message, "error_type": "Timeout"})
        except ShoalError as error:
            status, body = error_body(error)
            if isinstance(error, Overloaded):
                more = ((b"retry-after", b"%d" % error.retry_after_s),)
        except Exception as error:
            log.exception("%s: a request failed", self.args.name)
            status, body = error_body(error)
        await respond(send, status, body, more)

    async def run(self, headers: dict[bytes, bytes], query_string: bytes, receive: Receive) -> bytes:
        """From a request's bytes to its answer's. Raises what `answer` turns into a status."""
        async with asyncio.timeout(self.timeout_s):
            if headers.get(b"content-encoding", b"identity") != b"identity":
                raise InputError("Content-Encoding: compressed requests are not taken; send the bytes as they are")
            body = await read_body(headers, receive, max_bytes=self.max_bytes)
            query = read_query(query_string)
            media = headers.get(b"content-type", b"").decode("latin-1")
            if len(body) <= getattr(self.handler, "inline_bytes", INLINE_BYTES):
                inputs, parameters = self.handler.decode_request(body, media, query)
            else:
                loop = asyncio.get_running_loop()
                inputs, parameters = await loop.run_in_executor(
                    self.decoder, self.handler.decode_request, body, media, query
                )
            outputs = await unless_gone(self.batcher.submit(inputs), receive)
            return encode(self.handler.encode_response(outputs, parameters))

    def predict(self, inputs: list[Any]) -> list[Any]:
        """A forward pass, or several where one fails: a bad input fails alone, and what is too much goes in halves."""
        return isolated(self.handler.predict, inputs, name=self.args.name, out_of_memory=self.batcher.ran_out)

    def facts(self) -> dict[str, Any]:
        """What a replica tells of itself, for those that count and scale."""
        return self.batcher.facts()


class Replica(Model):
    """A model with a process of its own."""

    def __init__(self, args: dict[str, Any]) -> None:
        parts.begin()
        super().__init__(args)
        self.host = Host(application(self.answer), version=self.args.version, facts=self.facts)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """See `configure`. At first it begins to listen."""
        self.configure(config)
        self.max_memory_gb: float | None = config.get("max_memory_gb")
        self.host.takes = config["max_ongoing_requests"]
        self.host.limit = config["max_ongoing_requests"] + config["max_queued_requests"]
        if not self.host.tasks:
            await self.host.open()

    async def check_health(self) -> None:
        """Raises where Serve is to start another replica. Called every few seconds, in the loop that answers."""
        await self.host.check(self.max_memory_gb)

    async def __del__(self) -> None:
        await self.host.close(self.timeout_s)


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application of one model; `args` are ModelArgs."""
    deployment = serve.deployment(
        name="Model",
        # A model that cannot be loaded fails the same way the second time.
        max_constructor_retry_count=1,
        # The new version answers before the old one is taken away, so a bad one takes nothing away.
        max_surge_percent=100,
    )
    return deployment(Replica).bind(dict(args))
