"""A replica's own HTTP server, and its entry in the Keeper's directory.

Serve places, starts, checks, configures and ends the process; requests come here from the gateways, past Serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import resource
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

from cluster.errors import RunFailed
from serve import places
from serve.asgi import Receive, Scope, Send
from serve.asking import BEAT_S, ask
from serve.scaling import parts
from serve.scaling.gpus import Gpus
from serve.server import listen

# How long one that leaves still says so to whoever asks: by then every gateway has heard of it from the Keeper, and
# nobody sends a request into a connection that is being closed.
LINGER_S = 1.5


class Host:
    """Serves `app` for an application's replica until `close`.

    `limit`: requests that may be under way, None for any number; the next is answered 503 with `x-shoal: busy`, and
    the gateway tries another replica. `takes`: as many of them as it works on at a time, and so as many as gateways let
    go to it of those they held. `facts`: what the replica tells of itself every second, beside what is known
    here. All methods belong to one event loop.
    """

    def __init__(
        self,
        app: Any,
        *,
        version: str,
        facts: Callable[[], dict[str, Any]] = dict,
        limit: int | None = None,
        takes: int | None = None,
    ) -> None:
        self.app = app
        self.version = version
        self.facts = facts
        self.limit = limit
        self.takes = takes
        self.ongoing = 0
        self.answered = 0
        self.leaving = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.news = asyncio.Event()
        self.gpus = Gpus(())

    def tell(self) -> None:
        """Tell the Keeper now, for the facts have changed."""
        self.news.set()

    async def open(self) -> None:
        """Listen, and tell the Keeper. Raises OSError."""
        import ray
        from ray import serve

        context = serve.get_replica_context()
        address = ray.util.get_node_ip_address()
        self.secret = places.secret()
        self.id = context.replica_id.unique_id
        self.name = self.id.encode()
        path: str | None = None
        listening: socket.socket | None = None
        if address in ("127.0.0.1", "::1"):
            # A node of the loopback has no others beside it: all who may ask reach its folder of sockets.
            self.address = path = str(places.sockets() / f"r{secrets.token_hex(8)}")
        else:
            listening = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
            port = listening.getsockname()[1]
            self.address = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        self.said = {
            "id": self.id,
            "application": context.app_name,
            "address": self.address,
            "node": ray.get_runtime_context().get_node_id(),
            "host": address,
            "pid": os.getpid(),
            "version": self.version,
            "started": time.time(),
        }
        parts.mark("ready")
        self.said["parts"] = parts.marks()
        self.server, serving = await listen(self.answer, path=path, listening=listening)
        self.gpus = Gpus(ray.get_runtime_context().get_accelerator_ids()["GPU"])
        self.gpus.open()
        self.tasks = [serving, asyncio.create_task(self._tell())]

    async def close(self, grace_s: float) -> None:
        """Take no new request, finish those under way within `grace_s` seconds, and end."""
        if not self.tasks:
            return
        self.leaving = True
        self.gpus.close()
        with contextlib.suppress(Exception):
            await ask("leaving", self.id, within_s=1)
        began = time.monotonic()
        while time.monotonic() < began + LINGER_S or (self.ongoing and time.monotonic() < began + grace_s):
            await asyncio.sleep(0.02)
        for task in self.tasks[1:]:
            task.cancel()
        self.server.should_exit = True
        with contextlib.suppress(Exception):
            await ask("bye", self.id, within_s=1)
        if self.address.startswith("/"):
            with contextlib.suppress(OSError):
                os.unlink(self.address)

    async def check(self, max_memory_gb: float | None) -> None:
        """Raises RunFailed where this replica is to be replaced: it does not listen any more, or has more than
        `max_memory_gb` GiB resident, its children included, and none of its siblings is being replaced for it. Serve
        lets one that fails finish what it has in hand, and starts another meanwhile."""
        if not self.tasks or self.tasks[0].done():
            raise RunFailed("it does not listen any more")
        if max_memory_gb is not None and (used := _resident_mb() / 1024) > max_memory_gb:
            with contextlib.suppress(Exception):
                if not await ask("retires", self.id, within_s=1):
                    return  # its turn comes
            raise RunFailed(f"serve.max_memory_gb: {max_memory_gb:g}, and {used:.2f} GiB are resident; it is replaced")

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application: who asks, whether there is room, then `app`."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        given, wanted = b"", b""
        for name, value in scope["headers"]:
            if name == places.SECRET:
                given = value
            elif name == b"x-shoal-replica":
                wanted = value
        if not hmac.compare_digest(given, self.secret):
            await _short(send, 401, b"secret")
        elif wanted and wanted != self.name:
            await _short(send, 503, b"another")  # whose address this was before it died
        elif self.leaving:
            await _short(send, 503, b"leaving")
        elif self.limit is not None and self.ongoing >= self.limit:
            await _short(send, 503, b"busy")
        else:
            self.ongoing += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.ongoing -= 1
                self.answered += 1

    async def _tell(self) -> None:
        """Every second, as long as this lives. The Keeper may be away: it is told when it is back."""
        while True:
            with contextlib.suppress(Exception):
                await ask("hello", self.said, {**self.facts(), **self._own()})
                if self.leaving:  # a Keeper that was away has not heard of it
                    await ask("leaving", self.id)
            self.news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self.news.wait()

    def _own(self) -> dict[str, Any]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "ongoing": self.ongoing,
            "takes": self.takes,
            "answered": self.answered,
            "cpu_s": used.ru_utime + used.ru_stime,
            "rss_mb": _own_mb(),
            **self.gpus.told(),
        }


async def _short(send: Send, status: int, why: bytes) -> None:
    headers = [(b"x-shoal", why), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _own_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _resident_mb() -> float:
    """Of this process and those it started (a language model's engine is one)."""
    import psutil

    me = psutil.Process()
    total = me.memory_info().rss
    for child in me.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += child.memory_info().rss
    return total / 2**20
