"""The HTTP server of a gateway and of a replica: uvicorn, set up for a hop between processes of ours."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import uvicorn

# Whoever asks keeps its connections; this end does not close them under a request that comes.
_KEEP_ALIVE_S = 86_400


class Server(uvicorn.Server):
    """uvicorn within a process that has signal handlers of its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


async def listen(
    app: Any, *, path: str | None = None, listening: socket.socket | None = None
) -> tuple[Server, asyncio.Task[None]]:
    """Serve an ASGI application on a unix socket's path, or on a socket that listens already. Returns once it takes
    requests: the server, whose `should_exit` ends it, and the task that runs it. Raises OSError."""
    server = Server(
        uvicorn.Config(
            app,
            uds=path,
            interface="asgi3",
            proxy_headers=False,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            backlog=4096,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listening] if listening is not None else None))
    while not server.started:
        if serving.done():
            where = path if listening is None else listening.getsockname()
            raise OSError(f"{where}: cannot be listened on")
        await asyncio.sleep(0.01)
    return server, serving
