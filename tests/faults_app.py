"""An application for the tests of faults, hosted as models are: a request says how long it takes, and what it does to
its replica. Every execution leaves a line in a file, so that one that ran twice is seen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

from ray import serve

from cluster.errors import RunFailed
from serve.asgi import Disconnected, application, encode, read_body, respond, unless_gone
from serve.host import Host


class Echo:
    """Answers {id, pid, size} to {id, sleep, stream, ...}."""

    def __init__(self, args):
        if args.get("broken"):
            raise RunFailed("echo: this version cannot be loaded")
        self.args = args
        self.ballast: list[bytes] = []
        self.sick = False
        self.host = Host(application(self.answer), version=args["version"])

    async def reconfigure(self, config):
        self.config = config
        self.host.limit = config["limit"]
        if not self.host.tasks:
            await self.host.open()

    async def check_health(self):
        if self.sick:
            raise RunFailed("echo: it says that it is sick")
        await self.host.check(self.config["max_memory_gb"])

    async def __del__(self):
        await self.host.close(60)

    async def answer(self, scope, receive, send):
        body = await read_body(dict(scope["headers"]), receive, max_bytes=2**30)
        # A large body is its JSON and then blanks.
        asked = json.loads(body.rstrip(b" "))
        with open(self.args["log"], "a") as log:
            log.write(f"{asked['id']} {os.getpid()}\n")
        if asked.get("die"):
            await asyncio.sleep(asked.get("sleep", 0))
            os.kill(os.getpid(), signal.SIGKILL)
        if asked.get("block"):
            time.sleep(asked["block"])
        if asked.get("leak_mb"):
            self.ballast.append(os.urandom(2**20) * asked["leak_mb"])
        self.sick = self.sick or asked.get("sick", False)
        if asked.get("stream"):
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"text/event-stream")],
                }
            )
            for number in range(asked["stream"]):
                data = b"data: %d\n\n" % number
                await send({"type": "http.response.body", "body": data, "more_body": True})
                await asyncio.sleep(asked.get("sleep", 0.01))
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            await unless_gone(asyncio.sleep(asked.get("sleep", 0)), receive)
        except Disconnected:
            with open(self.args["log"], "a") as log:
                log.write(f"gone:{asked['id']} {os.getpid()}\n")
            return
        told = {"id": asked["id"], "pid": os.getpid(), "size": len(body), "version": self.args["version"]}
        await respond(send, 200, encode(told))


def build(args):
    return serve.deployment(name="Echo", max_constructor_retry_count=1, max_surge_percent=100)(Echo).bind(dict(args))


def configured(name, log, *, replicas=2, version="1", max_memory_gb=None, broken=False, limit=1000):
    """What Serve is told of one."""
    return {
        "name": name,
        "route_prefix": f"/m/{name}",
        "import_path": "faults_app:build",
        "args": {"version": version, "log": str(log), "broken": broken},
        "deployments": [
            {
                "name": "Echo",
                "num_replicas": replicas,
                "graceful_shutdown_timeout_s": 65,
                "graceful_shutdown_wait_loop_s": 0.1,
                "health_check_period_s": 3,
                "health_check_timeout_s": 4,
                "ray_actor_options": {"num_cpus": 0.1},
                "user_config": {"limit": limit, "max_memory_gb": max_memory_gb},
            }
        ],
    }
