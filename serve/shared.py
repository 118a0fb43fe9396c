"""A Serve application by import path ("serve.shared:build"): copies in which many small models live side by side.

Each model has a queue and batches of its own; forward passes of all take turns in one thread, as they share the cores
or the GPU. What models there are comes by `user_config`, so adding or removing one restarts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve

from cluster.errors import RunFailed, ShoalError
from cluster.monitoring.record import Loads
from serve.app import Model, ModelArgs
from serve.asgi import Receive, Scope, Send, application, error_body, respond
from serve.host import Host
from serve.located import located
from serve.sharing import key_of
from serve.shelf import Shelf
from serve.sizes import weight_of

log = logging.getLogger("ray.serve")
# A model that gets no room for so long, because all that are loaded are in use, is taken on without a trial.
TRY_S = 60.0


class Shared:
    """One copy: `answer` is the ASGI side, at /NAME for each model."""

    def __init__(self, args: dict[str, Any]) -> None:
        self.name, self.device = args["name"], args["device"]
        self.models: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, ModelArgs] = {}
        self.tried: dict[str, str] = {}
        self.predicting = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self.decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self.loads = Loads()
        self.shelf: Shelf[Model] = Shelf(
            self._load, guess=self._guess, size=lambda model: model.handler.bytes, budget=0, note=self._note
        )
        self.host = Host(application(self.answer), version="", facts=self.facts)
        self.trying: asyncio.Task[None] | None = None

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """See `configure`. At first it begins to listen."""
        self.configure(config)
        self.host.limit = config["max_ongoing_requests"]
        if not self.host.tasks:
            await self.host.open()

    async def check_health(self) -> None:
        """Raises where Serve is to start another copy. Called every few seconds, in the loop that answers."""
        await self.host.check(None)

    async def __del__(self) -> None:
        longest = max((model["config"]["request_timeout_s"] for model in self.models.values()), default=60)
        await self.host.close(longest)

    def configure(self, config: dict[str, Any]) -> None:
        """The models ({name: cluster.serving.shared_model}) and the memory for them."""
        before = set(self.keys)
        self.models = config["models"]
        self.keys = {
            key_of(name, model): ModelArgs(
                name=name,
                device=self.device,
                **{field: model[field] for field in ("task", "version", "folder", "dtype", "attempt")},
            )
            for name, model in self.models.items()
        }
        self.shelf.budget = int(config["memory_mb"] * 2**20)
        for key in before - set(self.keys):
            self.shelf.forget(key)
        for key, book in self.shelf.books.items():
            if book.here and key in self.keys:
                book.loading.result().configure(self.models[self.keys[key].name]["config"])
        if self.trying is not None:
            self.trying.cancel()
        self.trying = asyncio.create_task(self._try(fresh=not before))

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, to the model that its path names."""
        name = scope["path"].strip("/")
        while (entry := self.models.get(name)) is not None:
            key = key_of(name, entry)
            try:
                model = await self._taken(name, key)
                break
            except ShoalError as error:
                if key in self.keys:
                    await respond(send, *error_body(error))
                    return
                # It was changed, or taken off, while this request waited for it: what is there now counts.
        else:
            # A gateway that has not heard yet that it went elsewhere: it asks there, or has the client come again.
            await respond(send, 503, b"", ((b"x-shoal", b"busy"),))
            return
        try:
            await model.answer(scope, receive, send)
        finally:
            self.shelf.give_back(key)

    async def _taken(self, name: str, key: str) -> Model:
        try:
            async with asyncio.timeout(self.models[name]["config"]["request_timeout_s"]):
                return await self.shelf.take(key)
        except TimeoutError:
            raise RunFailed(
                f"{name}: there was no room for it in the shared copies {self.name} in time; raise memory_mb or "
                f"replicas of shared.{self.name} in cluster.yaml"
            ) from None
        except Exception as error:
            log.exception("%s: cannot be loaded", name)
            raise RunFailed(f"{name}: the model cannot be loaded: {_said(error)}") from None

    def facts(self) -> dict[str, Any]:
        """What a copy tells of itself: which models are loaded, which were tried (name to tag) and could not be loaded,
        and of all together how many requests there are and how long they wait."""
        here = [book.loading.result().facts() for book in self.shelf.books.values() if book.here]
        added = ("ongoing", "queued", "inputs_per_s")
        told = {name: sum(one[name] for one in here) for name in added}
        longest = ("queue_p50_s", "queue_p99_s", "pass_s")
        told |= {name: max((one[name] for one in here), default=0.0) for name in longest}
        return {
            **told,
            "loaded": [self.keys[key].name for key in self.shelf.loaded() if key in self.keys],
            "tried": self.tried,
            "faults": {self.keys[key].name: _said(e) for key, (_, e) in self.shelf.faults.items() if key in self.keys},
            "memory_mb": self.shelf.used / 2**20,
        }

    async def _try(self, fresh: bool) -> None:
        """Load each new model once, so that one that cannot be loaded is known: it stands in the shelf's `faults`. A
        copy that has just started knows none of them, and loads only what pushes out no other."""
        loop = asyncio.get_running_loop()
        for key, args in list(self.keys.items()):
            if self.tried.get(args.name) == key:
                continue
            try:
                fits = not fresh or await loop.run_in_executor(self.decoding, self.shelf.has_room, key)
            except Exception:
                fits = True  # its files are not sound, and the load will say so
            if fits:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(TRY_S), self.shelf.borrow(key):
                        pass
            self.tried[args.name] = key
        self.tried = {args.name: key for key, args in self.keys.items() if self.tried.get(args.name) == key}
        self.host.tell()

    def _load(self, key: str) -> Model:
        """In the shelf's thread."""
        model = Model(self.keys[key].model_dump(), predicting=self.predicting, decoding=self.decoding)
        model.configure(self.models[self.keys[key].name]["config"])
        return model

    def _guess(self, key: str) -> int:
        args = self.keys[key]
        return weight_of(located(args.folder), dtype=args.dtype, device=self.device)

    def _note(self, key: str, seconds: float | None) -> None:
        name = key.partition("|")[0]
        if seconds is None:
            self.loads.let_go(name)
        else:
            self.loads.loaded(name, seconds)
        self.host.tell()


def _said(error: Exception) -> str:
    """Only our own errors show their message: others may tell of our insides."""
    return error.message if isinstance(error, ShoalError) else type(error).__name__


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application of shared copies; see cluster.serving.shared_application."""
    deployment = serve.deployment(name="Shared", max_constructor_retry_count=2, max_surge_percent=100)
    return deployment(Shared).bind(dict(args))
