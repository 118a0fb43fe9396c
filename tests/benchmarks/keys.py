"""What keys, limits, usage and the request log cost: CPU-microseconds a request of the gateway's process.

    python tests/benchmarks/keys.py [--requests 5000] [--rounds 7] [--keys 1000]

Every way does the same: who asks, may they, note what it came to, and write that. The ways are taken in turn, round
after round, so that whatever else the machine does hits all alike; the clock is the process's CPU, writing threads
included. `library memory` is the same limit counted by limits' own memory store, at 1 and at --keys keys. Redis is one
of its own, where redis-server is installed; its server's CPU is not in the figure. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cluster import ports

Way = Callable[[int], Awaitable[None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keys", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SHOAL_HOME"] = folder
        result = asyncio.run(measure(Path(folder), arguments.requests, arguments.rounds, arguments.keys))
    print(json.dumps(result))


async def measure(home: Path, requests: int, rounds: int, keys: int) -> dict[str, Any]:
    from cluster.accounts import Keys

    made = [Keys().create(f"t{number % 20}")[1] for number in range(keys)]
    server, port = _redis()
    limits: dict[str, Any] = {"key": {"requests": "1000000000/minute"}}
    settings: dict[str, dict[str, Any]] = {
        "no keys": {},
        "keys": {"keys": "required"},
        "keys, a limit in the shared file": {"keys": "required", "limits": limits},
    }
    if server is not None:
        redis = {**limits, "store": f"redis://127.0.0.1:{port}/0"}
        settings["keys, a limit in Redis"] = {"keys": "required", "limits": redis}
    keepers = {name: await _keeper(home, access) for name, access in settings.items()}
    ways: dict[str, Way] = {name: _through(keeper, made) for name, keeper in keepers.items()}
    ways["library memory, 1 key"] = _library(1)
    ways[f"library memory, {keys} keys"] = _library(keys)
    found: dict[str, list[float]] = {name: [] for name in ways}
    try:
        for turn in range(rounds + 1):
            for name, way in ways.items():
                number = requests // 10 if "Redis" in name or "library" in name else requests
                began = time.process_time()
                await way(number)
                if turn:  # the first is to warm up
                    found[name].append((time.process_time() - began) / number * 1e6)
        for keeper in keepers.values():
            await keeper.stop()
    finally:
        if server is not None:
            server.kill()
            server.wait()
    for name, times in found.items():
        print(f"{name:<36} {statistics.median(times):7.1f} us  ({min(times):.1f} to {max(times):.1f})")
    return {
        "requests": requests,
        "rounds": rounds,
        "keys": keys,
        "us": {n: statistics.median(t) for n, t in found.items()},
    }


async def _keeper(home: Path, access: dict[str, Any]) -> Any:
    from cluster.settings.access import Access, RequestLog
    from serve.keys.gatekeeper import Gatekeeper

    keeper = Gatekeeper(Access.model_validate(access), RequestLog(), home=home, gateway=os.urandom(4).hex())
    await keeper.start()
    return keeper


def _through(keeper: Any, secrets: list[str]) -> Way:
    from serve.keys.gatekeeper import request_id

    headers = [{b"authorization": f"Bearer {secret}".encode()} for secret in secrets]

    async def go(requests: int) -> None:
        for number in range(requests):
            sent = headers[number % len(headers)]
            given = request_id(sent)
            ticket = await keeper.admit(await keeper.identify(sent, request_id=given), "reviews", request_id=given)
            keeper.settle(ticket, status=200, seconds=0.001, bytes_in=100, bytes_out=100)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(1.1)  # the log is written

    return go


def _library(keys: int) -> Way:
    from limits import parse
    from limits.aio.storage import MemoryStorage
    from limits.aio.strategies import SlidingWindowCounterRateLimiter

    limiter, item = SlidingWindowCounterRateLimiter(MemoryStorage()), parse("1000000000/minute")

    async def go(requests: int) -> None:
        for number in range(requests):
            await limiter.hit(item, str(number % keys))
            await asyncio.sleep(0)  # as in a server: its clean-up runs between requests

    return go


def _redis() -> tuple[subprocess.Popen[bytes] | None, int]:
    program = shutil.which("redis-server")
    if program is None:
        return None, 0
    [port] = ports.pick(1)
    words = ["--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    return server, port


if __name__ == "__main__":
    main()
